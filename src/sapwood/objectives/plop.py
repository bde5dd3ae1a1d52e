"""PLOP: local POD and pseudo-labels (Douillard et al., CVPR 2021, arXiv 2011.11390; settings of the official code)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sapwood.errors import ConfigError
from sapwood.functional.pod import Axis, local_pod
from sapwood.functional.segmentation import pixel_cross_entropy
from sapwood.objectives.base import Outputs
from sapwood.objectives.pixels import NewLogits, among, at_least_zero, growth_factor, labelled_entropy, maps_with_logits
from sapwood.objectives.pseudo import PseudoConfig, PseudoLabelled
from sapwood.task import Task


@dataclass(frozen=True)
class PlopConfig(PseudoConfig):
    """Settings of the pseudo-labels, and weights of the distillation of feature maps.

    The weights are those of VOC; the official scripts for ADE20K have 0.001 and 0.00001.

    Attributes:
        pod: weight of each feature map.
        pod_logits: weight of the map of logits.
        pod_axis: a map of h x w cells is cut into tiles ``per_axis``; ``width_only``, by its width in both directions,
            as the official code does: rows at the bottom are left out, and maps wider than high are refused.
        new_logits: in the map of logits those of new classes are added to the background's (``sum``) or left out
            (``trim``).
    """

    pod: float = 0.01
    pod_logits: float = 0.0005
    pod_axis: Axis = "per_axis"
    new_logits: NewLogits = "sum"

    def rules(self) -> tuple[tuple[bool, str], ...]:
        """What must hold, and what to say otherwise."""
        return (
            *super().rules(),
            at_least_zero("pod", self.pod),
            at_least_zero("pod_logits", self.pod_logits),
            among("pod_axis", self.pod_axis, Axis),
            among("new_logits", self.new_logits, NewLogits),
        )


class Plop(PseudoLabelled):
    """Cross entropy with pseudo-labels, and feature maps that are held strip by strip.

    Maps: every block of a transformer or stage of a hierarchical encoder, the classifier's input and the logits before
    they are enlarged; the paper has the four stages of a ResNet. A transformer's blocks give the sum of their residual
    stream, which no activation has gone through; whether ``pod`` fits their scale is for the user to try.

    Departures from the official code, which is available by the options named: uncertainty is ``entropy=sum`` with a
    lowest threshold of its own, the median is exact, strips follow both axes, and the cross entropy is divided by the
    pixels that have a label. Not available: there, a picture without any background pixel has factor 0, here 1. In a
    round without new classes the factor sqrt(channels / new channels) is 1; the paper has no such rounds.
    """

    Config = PlopConfig
    summary = "cross entropy with pseudo-labels + distillation of pooled strips of every feature map"
    needs = frozenset({"teacher", "maps", "grid"})

    def loss(self, outputs: Outputs, targets: Tensor, teacher: Outputs | None, task: Task) -> Tensor:
        """Factor * CE on pseudo-labels + sqrt(M / N) * local POD; the first round is plain CE."""
        if teacher is None:
            return labelled_entropy(outputs, targets, self.config)
        labels, factor = self.relabelled(targets, teacher.logits, task)
        entropy = self.averaged(pixel_cross_entropy(outputs.logits, labels, reduction="none"), labels, factor)
        return entropy + self.distilled(outputs, teacher)

    def distilled(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        """sqrt(M / N) times the local POD of all maps."""
        config = self.config
        ours, theirs = maps_with_logits(outputs, teacher, config.new_logits)
        wide = next((map for map in ours if map.shape[2] < map.shape[3]), None)
        if config.pod_axis == "width_only" and wide is not None:
            height, width = wide.shape[2:]
            raise ConfigError(
                f"objective.pod_axis=width_only needs maps at least as high as wide, this one has {height} x {width} "
                "cells; use per_axis, or a square --image-size"
            )
        factors = [config.pod] * (len(ours) - 1) + [config.pod_logits]
        growth = growth_factor(outputs.logits.shape[1], teacher.logits.shape[1])
        return growth * local_pod(ours, theirs, factors=factors, axis=config.pod_axis)
