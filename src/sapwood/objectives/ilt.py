"""Incremental learning techniques (Michieli & Zanuttigh, ICCVW 2019, arXiv 1907.13372; settings of MiB's code)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from sapwood.objectives.base import Objective, Outputs
from sapwood.objectives.pixels import DistillConfig, at_least_zero, distilled_loss
from sapwood.task import Task


@dataclass(frozen=True)
class IltConfig(DistillConfig):
    """Weights of the three terms; those of ``lwf`` and one more.

    Attributes:
        features: weight of the mean squared difference of the patch tokens.
    """

    features: float = 100.0

    def rules(self) -> tuple[tuple[bool, str], ...]:
        """What must hold, and what to say otherwise."""
        return (*super().rules(), at_least_zero("features", self.features))


class IncrementalLearningTechniques(Objective):
    """Learning without forgetting whose features are also held near those of the network before the round."""

    kinds = frozenset({"segmentation"})
    Config = IltConfig
    summary = "cross entropy + distillation of the old channels and of the patch tokens"
    needs = frozenset({"teacher", "features"})

    def loss(self, outputs: Outputs, targets: Tensor, teacher: Outputs | None, task: Task) -> Tensor:
        """CE + strength * KD + features * MSE over all numbers of the patch tokens; the first round is plain CE."""
        loss = distilled_loss(outputs, targets, teacher, self.config)
        if teacher is None:
            return loss
        if outputs.features is None or teacher.features is None:
            raise ValueError("ilt needs the patch tokens of student and teacher")
        return loss + self.config.features * F.mse_loss(outputs.features.float(), teacher.features.detach().float())
