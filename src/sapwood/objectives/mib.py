"""Modelling the background (Cermelli et al., CVPR 2020, arXiv 2002.00718; settings of the official code)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from sapwood.functional.segmentation import background_initialisation, pixel_cross_entropy, pixel_losses
from sapwood.objectives.base import Objective, Outputs
from sapwood.objectives.pixels import DistillConfig
from sapwood.task import Task

if TYPE_CHECKING:
    from sapwood.heads.base import Head

HeadInit = Literal["balanced", "weight_only", "random"]


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
        known = self.head_init in ("balanced", "weight_only", "random")
        message = f"objective.head_init must be balanced, weight_only or random, got {self.head_init!r}"
        return (*super().rules(), (known, message))


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
        if task.index == 0 or not task.new or self.config.head_init == "random":
            return
        weight, bias = head.classifier.weight, head.classifier.get_parameter("bias")
        new, old = list(task.new), task.known - len(task.new)
        rows, biases, lowered = background_initialisation(weight[:old], bias[:old], len(new))
        with torch.no_grad():
            weight[new] = rows
            if self.config.head_init == "balanced":
                bias[new] = biases
                bias[0] = lowered

    def loss(self, outputs: Outputs, targets: Tensor, teacher: Outputs | None, task: Task) -> Tensor:
        """Unbiased CE + strength * unbiased KD, in one pass over the logits; the first round is plain CE."""
        config = self.config
        if teacher is None:
            return pixel_cross_entropy(outputs.logits, targets, reduction=config.reduction)
        old = torch.ones(outputs.logits.shape[1], dtype=torch.bool)
        old[[*task.annotated, *task.new]] = False
        entropy, distilled = pixel_losses(
            outputs.logits, targets, teacher.logits, old_classes=old, alpha=config.alpha, reduction=config.reduction
        )
        return entropy + config.strength * distilled
