"""What the objectives share when they learn masks: the pixels' losses, which channels are old, where new rows begin."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from sapwood.functional.pod import fold_new_channels
from sapwood.functional.segmentation import background_initialisation, pixel_cross_entropy, pixel_losses
from sapwood.heads.dense import DenseHead
from sapwood.objectives.base import Outputs
from sapwood.settings import check
from sapwood.task import Task
from sapwood.world.sums import divisor

if TYPE_CHECKING:
    from sapwood.heads.base import Head

HeadInit = Literal["balanced", "weight_only", "random"]
NewLogits = Literal["sum", "trim"]
CeDenominator = Literal["valid", "all_pixels"]
IGNORED = 255


def at_least_zero(name: str, value: float) -> tuple[bool, str]:
    """A rule for ``settings.check``."""
    return 0 <= value < math.inf, f"objective.{name} must be >= 0 and finite, got {value}"


def among(name: str, value: object, choices: object) -> tuple[bool, str]:
    """A rule for ``settings.check``: the value is one of those of a ``Literal``."""
    known = get_args(choices)
    return value in known, f"objective.{name} must be {', '.join(known[:-1])} or {known[-1]}, got {value!r}"


@dataclass(frozen=True)
class PixelConfig:
    """Cross entropy of the pixels over all channels.

    Attributes:
        ce_denominator: the sum over the pixels is divided by the ``valid`` ones, or by ``all_pixels``, ignored ones
            included, as the usual implementation does.
    """

    ce_denominator: CeDenominator = "valid"

    def __post_init__(self) -> None:
        check(*self.rules())

    def rules(self) -> tuple[tuple[bool, str], ...]:
        """What must hold, and what to say otherwise."""
        return (among("ce_denominator", self.ce_denominator, CeDenominator),)


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


def averaged(entropy: Tensor, labels: Tensor, config: PixelConfig) -> Tensor:
    """The pixels' cross entropy [B, H, W] over those that have a label, or over all."""
    if config.ce_denominator == "all_pixels":
        return entropy.sum() / labels.numel()
    return entropy.sum() / divisor((labels != IGNORED).sum())


def labelled_entropy(outputs: Outputs, targets: Tensor, config: PixelConfig) -> Tensor:
    """Plain cross entropy of the pixels over all channels."""
    return averaged(pixel_cross_entropy(outputs.logits, targets, reduction="none"), targets, config)


def distilled_loss(outputs: Outputs, targets: Tensor, teacher: Outputs | None, config: DistillConfig) -> Tensor:
    """CE + strength * KD over the old channels; plain CE without a teacher. In one pass over the logits."""
    if teacher is None:
        return labelled_entropy(outputs, targets, config)
    entropy, distilled = pixel_losses(
        outputs.logits,
        targets,
        teacher.logits,
        alpha=config.alpha,
        unbiased=False,
        reduction="none",
    )
    return averaged(entropy, targets, config) + config.strength * distilled.mean()


def unbiased_loss(outputs: Outputs, targets: Tensor, teacher: Outputs, task: Task, config: DistillConfig) -> Tensor:
    """Unbiased CE + strength * unbiased KD (MiB). Old channels are those that the round does not annotate."""
    old = torch.ones(outputs.logits.shape[1], dtype=torch.bool)
    old[[*task.annotated, *task.new]] = False
    entropy, distilled = pixel_losses(
        outputs.logits, targets, teacher.logits, old_classes=old, alpha=config.alpha, reduction="none"
    )
    return averaged(entropy, targets, config) + config.strength * distilled.mean()


def start_from_background(head: Head, task: Task, how: HeadInit) -> None:
    """Start the rows of a later round's new classes from the background's.

    ``balanced``: weight and bias, all biases lowered so that every probability of the network before the round is kept
    (MiB); ``weight_only``: the weight, the biases as they grew; ``random``: nothing. Where rounds have stems of their
    own, the new one begins as the background's, too.
    """
    if task.index == 0 or not task.new or how == "random":
        return
    weight, bias = head.classifier.weight, head.classifier.get_parameter("bias")
    new, old = list(task.new), task.known - len(task.new)
    rows, biases, lowered = background_initialisation(weight[:old], bias[:old], len(new))
    with torch.no_grad():
        weight[new] = rows
        if how == "balanced":
            bias[new] = biases
            bias[0] = lowered
    if isinstance(head, DenseHead) and head.stems is not None:
        head.copy_stem(0, new[0])


def growth_factor(channels: int, old_channels: int) -> float:
    """sqrt(M / N) of M channels, the background included, of which N are new; 1 in a round without new classes.

    >>> growth_factor(20, 15)
    2.0
    """
    return math.sqrt(channels / (channels - old_channels)) if channels > old_channels else 1.0


def maps_with_logits(
    outputs: Outputs, teacher: Outputs, new_logits: NewLogits = "sum"
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """All maps of student and teacher, the logits last and with the teacher's channels."""
    if outputs.grid_logits is None or teacher.grid_logits is None or not outputs.maps or not teacher.maps:
        raise ValueError("feature maps and the logits on their own grid are needed, of student and teacher")
    folded = fold_new_channels(outputs.grid_logits, teacher.grid_logits.shape[1], new_logits)
    return (*outputs.maps, folded), (*teacher.maps, teacher.grid_logits)
