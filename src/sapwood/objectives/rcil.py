"""RCIL: representation compensation (Zhang et al., CVPR 2022, arXiv 2203.05402; settings of the official code)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from sapwood.functional.pod import pooled_cube_distillation
from sapwood.objectives.base import Objective, Outputs
from sapwood.objectives.pixels import (
    DistillConfig,
    HeadInit,
    among,
    at_least_zero,
    growth_factor,
    labelled_entropy,
    maps_with_logits,
    start_from_background,
    unbiased_loss,
)
from sapwood.task import Task

if TYPE_CHECKING:
    from sapwood.heads.base import Head


@dataclass(frozen=True)
class RcilConfig(DistillConfig):
    """Weights of the unbiased distillation and of the pooled cube, and where new rows of the head begin.

    The weights are those of VOC. Official for ADE20K: 5e-6 and, last, 5e-7, of both kinds; for Cityscapes as domains:
    5e-4 and 1e-4 over space, 1e-4 and 0 over channels.

    Attributes:
        spatial: weight of each feature map averaged over windows of the plane.
        spatial_last: that of the map of logits.
        channel: weight of each feature map averaged over neighbouring channels; the logits have no such term.
        channel_last: that of the last of these maps, the classifier's input.
        head_init: as ``mib`` has it; ``weight_only`` is the official code's.
    """

    strength: float = 100.0
    spatial: float = 0.01
    spatial_last: float = 0.0005
    channel: float = 0.01
    channel_last: float = 0.0005
    head_init: HeadInit = "weight_only"

    def rules(self) -> tuple[tuple[bool, str], ...]:
        """What must hold, and what to say otherwise."""
        weights = ("spatial", "spatial_last", "channel", "channel_last")
        return (
            *super().rules(),
            *(at_least_zero(name, getattr(self, name)) for name in weights),
            among("head_init", self.head_init, HeadInit),
        )


class RepresentationCompensation(Objective):
    """The losses of ``mib`` and feature maps that are held by averages over space and over channels.

    The parallel branches, one frozen and one that learns, merged after every round, are a structure of the dense head:
    ``branches=parallel``, whose ``branch_start`` says how a round begins. Here they live in the decoder alone, so that
    they go with a frozen encoder; in the paper every 3x3 convolution of the ResNet has them too.

    Open in the paper, taken from its code: the last map's smaller weight, that logits count over space only, windows of
    4 to 24 cells whatever the size of a map (zeros around it count). Departures: the cross entropy is divided by the
    pixels that are not ignored (``ce_denominator=all_pixels`` is the code's); known classes that the round annotates
    again are not part of the background; without new classes the factor sqrt(channels / new channels) is 1.
    """

    kinds = frozenset({"segmentation"})
    Config = RcilConfig
    summary = "mib's losses + distillation of feature maps averaged over space and channels; parallel branches"
    needs = frozenset({"teacher", "maps", "grid"})
    head: ClassVar[Mapping[str, Any]] = {"branches": "parallel"}

    def initialise(self, head: Head, task: Task) -> None:
        """Start the rows of the round's new classes from the background's."""
        start_from_background(head, task, self.config.head_init)

    def loss(self, outputs: Outputs, targets: Tensor, teacher: Outputs | None, task: Task) -> Tensor:
        """Unbiased CE + strength * unbiased KD + sqrt(M / N) * pooled cube; the first round is plain CE."""
        if teacher is None:
            return labelled_entropy(outputs, targets, self.config)
        return unbiased_loss(outputs, targets, teacher, task, self.config) + self.distilled(outputs, teacher)

    def distilled(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        """sqrt(M / N) times the pooled cube of all maps."""
        config = self.config
        ours, theirs = maps_with_logits(outputs, teacher)
        features = len(ours) - 1
        cube = pooled_cube_distillation(
            ours,
            theirs,
            spatial_factors=[config.spatial] * features + [config.spatial_last],
            channel_factors=[config.channel] * (features - 1) + [config.channel_last],
        )
        return growth_factor(outputs.logits.shape[1], teacher.logits.shape[1]) * cube
