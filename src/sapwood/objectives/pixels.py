"""What the objectives share when they learn masks: the pixels' cross entropy and the older losses on top of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from sapwood.functional.segmentation import Reduction, pixel_cross_entropy, pixel_losses
from sapwood.objectives.base import Outputs
from sapwood.settings import check

_REDUCTIONS: dict[str, Reduction] = {"valid": "mean", "all_pixels": "mean_all"}


def at_least_zero(name: str, value: float) -> tuple[bool, str]:
    """A rule for ``settings.check``."""
    return 0 <= value < math.inf, f"objective.{name} must be >= 0 and finite, got {value}"


@dataclass(frozen=True)
class PixelConfig:
    """Cross entropy of the pixels over all channels.

    Attributes:
        ce_denominator: the sum over the pixels is divided by the ``valid`` ones, or by ``all_pixels``, ignored ones
            included, as the usual implementation does.
    """

    ce_denominator: Literal["valid", "all_pixels"] = "valid"

    def __post_init__(self) -> None:
        check(*self.rules())

    def rules(self) -> tuple[tuple[bool, str], ...]:
        """What must hold, and what to say otherwise."""
        known = self.ce_denominator in _REDUCTIONS
        return ((known, f"objective.ce_denominator must be valid or all_pixels, got {self.ce_denominator!r}"),)

    @property
    def reduction(self) -> Reduction:
        """``reduction`` of the losses in ``functional.segmentation``."""
        return _REDUCTIONS[self.ce_denominator]


@dataclass(frozen=True)
class DistillConfig(PixelConfig):
    """Cross entropy and distillation of the old channels, settings of the field's usual implementation (MiB's).

    Attributes:
        strength: weight of the distillation, which is a mean over the old channels and over all pixels, ignored ones
            included.
        alpha: multiplies the teacher's logits.
    """

    strength: float = 100.0
    alpha: float = 1.0

    def rules(self) -> tuple[tuple[bool, str], ...]:
        """What must hold, and what to say otherwise."""
        return (
            *super().rules(),
            at_least_zero("strength", self.strength),
            (0 < self.alpha < math.inf, f"objective.alpha must be > 0 and finite, got {self.alpha}"),
        )


def distilled_loss(outputs: Outputs, targets: Tensor, teacher: Outputs | None, config: DistillConfig) -> Tensor:
    """CE + strength * KD over the old channels; plain CE without a teacher. In one pass over the logits."""
    if teacher is None:
        return pixel_cross_entropy(outputs.logits, targets, reduction=config.reduction)
    entropy, distilled = pixel_losses(
        outputs.logits,
        targets,
        teacher.logits,
        alpha=config.alpha,
        unbiased=False,
        reduction=config.reduction,
    )
    # Distillation is a mean over all pixels whichever way the cross entropy is divided.
    return entropy + config.strength * distilled
