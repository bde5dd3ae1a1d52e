"""Learning without forgetting (Li & Hoiem, ECCV 2016; settings of the field's usual implementation)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sapwood.functional.losses import distillation, scoped_cross_entropy
from sapwood.objectives.base import Objective, Outputs, Scope
from sapwood.objectives.pixels import DistillConfig, distilled_loss
from sapwood.settings import check
from sapwood.task import Task


@dataclass(frozen=True)
class LwfConfig:
    """Weights of the two terms.

    Attributes:
        strength: weight of the distillation.
        temperature: of both softmaxes; the loss is not multiplied by its square.
        scope: classes of the cross entropy.
    """

    strength: float = 3.0
    temperature: float = 2.0
    scope: Scope = "own"

    def __post_init__(self) -> None:
        check(
            (self.strength >= 0, f"objective.strength must be >= 0, got {self.strength}"),
            (self.temperature > 0, f"objective.temperature must be > 0, got {self.temperature}"),
        )


class LearningWithoutForgetting(Objective):
    """Cross entropy plus distillation of the old classes from the network before the round.

    Of pictures with ``scope = own`` the old classes' rows rest, so that the distillation reaches what adapts the
    backbone; the paper trains them too, by SGD.

    For pixels as in MiB's code: no temperature, a mean over the old channels instead of a sum, and strength 100.
    """

    Config = LwfConfig
    SegmentationConfig = DistillConfig
    summary = "cross entropy + distillation from the network before the round"
    needs = frozenset({"teacher"})

    def loss(self, outputs: Outputs, targets: Tensor, teacher: Outputs | None, task: Task) -> Tensor:
        """CE over the scope + strength * KD over the old classes; the first round has no teacher."""
        if isinstance(self.config, DistillConfig):
            return distilled_loss(outputs, targets, teacher, self.config)
        loss = scoped_cross_entropy(outputs.logits, targets, self.scope_of(task, outputs.logits.shape[1]))
        if teacher is None:
            return loss
        return loss + self.config.strength * distillation(outputs.logits, teacher.logits, self.config.temperature)
