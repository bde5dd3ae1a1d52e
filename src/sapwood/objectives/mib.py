"""Modelling the background (Cermelli et al., CVPR 2020, arXiv 2002.00718; settings of the official code)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from sapwood.objectives.base import Objective, Outputs
from sapwood.objectives.pixels import (
    DistillConfig,
    HeadInit,
    among,
    labelled_entropy,
    start_from_background,
    unbiased_loss,
)
from sapwood.task import Task

if TYPE_CHECKING:
    from sapwood.heads.base import Head


@dataclass(frozen=True)
class MibConfig(DistillConfig):
    """Weights of the two terms and where new rows of the head begin.

    Attributes:
        head_init: ``balanced``, weight and bias of the background, all biases lowered so that every probability of the
            network before the round is kept; ``weight_only``, the background's weight with the bias as it grew (RCIL's
            code); ``random``, as they grew.
    """

    strength: float = 10.0
    head_init: HeadInit = "balanced"

    def rules(self) -> tuple[tuple[bool, str], ...]:
        """What must hold, and what to say otherwise."""
        return (*super().rules(), among("head_init", self.head_init, HeadInit))


class ModellingTheBackground(Objective):
    """Unbiased cross entropy and unbiased distillation.

    A pixel labelled background may be of any class that the round does not annotate, and what the network before the
    round called background may be one of the round's new classes: both losses add those probabilities up.
    """

    kinds = frozenset({"segmentation"})
    Config = MibConfig
    summary = "cross entropy and distillation that allow for old and new classes in the background"
    needs = frozenset({"teacher"})

    def initialise(self, head: Head, task: Task) -> None:
        """Start the rows of the round's new classes from the background's."""
        start_from_background(head, task, self.config.head_init)

    def loss(self, outputs: Outputs, targets: Tensor, teacher: Outputs | None, task: Task) -> Tensor:
        """Unbiased CE + strength * unbiased KD, in one pass over the logits; the first round is plain CE."""
        if teacher is None:
            return labelled_entropy(outputs, targets, self.config)
        return unbiased_loss(outputs, targets, teacher, task, self.config)
