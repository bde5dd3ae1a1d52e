"""What training minimises."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sapwood.task import Snapshot, Task

Scope = Literal["own", "seen"]
Parameters = dict[str, nn.Parameter]
Forward = Callable[[Any], Tensor]
Batches = Callable[[int], Iterable[Any]]


class Objective:
    """Base of all objectives: plain cross entropy over a scope of classes.

    ``scope`` is ``own`` (a softmax over the classes that have pictures in this round) or ``seen`` (over all classes so
    far). It moves results by many points, so every objective has it and every table prints it.

    Class attributes:
        needs: what the training loop computes for the loss; ``teacher`` is the network before the round.
    """

    Config: ClassVar[type]
    summary: ClassVar[str]
    growth: ClassVar[str] = "nothing"
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: Any) -> None:
        self.config = config

    def loss(self, logits: Tensor, targets: Tensor, teacher: Tensor | None, task: Task) -> Tensor:
        """Scalar, nats a picture; logits [B, K], targets int64 [B], teacher logits [B, K_old] or None."""
        raise NotImplementedError

    def penalty(self, parameters: Parameters) -> Tensor | None:
        """A term on the parameters themselves; None for none."""
        return None

    def after_task(self, parameters: Parameters, batches: Batches, forward: Forward, task: Task) -> None:
        """Remember what later rounds need.

        ``batches(size)`` goes through the round's pictures once, ``size`` at a time; ``forward`` gives the training
        logits [B, K] of such a batch, whose classes are ``batch.targets``.
        """

    def state(self) -> Snapshot:
        """Tensors and JSON kept between rounds; empty for most."""
        return {}, {}

    def load(self, snapshot: Snapshot) -> None:
        """Restore what ``state`` gave."""

    def scope_of(self, task: Task, classes: int) -> Tensor | None:
        """Class indices of the softmax, or None for all."""
        if self.config.scope == "seen" or len(task.annotated) == classes:
            return None
        return torch.tensor(task.annotated)
