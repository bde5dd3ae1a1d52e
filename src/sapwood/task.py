"""What is known of a round when it begins, and what a part leaves behind after it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Snapshot = tuple[dict[str, Tensor], dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """What is known when a round begins; the number of rounds to come is not.

    Attributes:
        index: 0 for the first round.
        name: as the user gave it.
        new: indices of the classes that this round adds, in learning order.
        annotated: indices of all classes that have pictures in this round, new or old.
        known: number of classes once the round is over.
        seed: of this state; every draw of the round derives from (seed, index).
    """

    index: int
    name: str
    new: tuple[int, ...]
    annotated: tuple[int, ...]
    known: int
    seed: int

    def generator(self, purpose: str) -> torch.Generator:
        """A CPU generator whose draws depend on the seed, the round and the purpose, and on nothing else."""
        digest = hashlib.sha256(f"{self.seed}/{self.index}/{purpose}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
