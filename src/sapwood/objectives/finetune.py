"""Cross entropy and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sapwood.functional.losses import scoped_cross_entropy
from sapwood.objectives.base import Objective, Scope
from sapwood.task import Task


@dataclass(frozen=True)
class FinetuneConfig:
    """Attributes:
    scope: classes of the softmax: ``own`` round or all ``seen``.
    """

    scope: Scope = "own"


class Finetune(Objective):
    """Plain fine-tuning on the round's pictures."""

    Config = FinetuneConfig
    summary = "cross entropy"

    def loss(self, logits: Tensor, targets: Tensor, teacher: Tensor | None, task: Task) -> Tensor:
        """Mean cross entropy over the scope."""
        return scoped_cross_entropy(logits, targets, self.scope_of(task, logits.shape[1]))
