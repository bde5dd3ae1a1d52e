"""SATS: self-attention transfer (Qiu et al., Pattern Recognition 2023, arXiv 2203.07667; settings of its code)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from sapwood.functional.segmentation import pixel_losses
from sapwood.functional.transfer import HeadLayout, attention_transfer, labels_on_cells
from sapwood.objectives.base import Outputs
from sapwood.objectives.pixels import among, at_least_zero, labelled_entropy
from sapwood.objectives.pseudo import PseudoConfig, PseudoLabelled
from sapwood.task import Task


@dataclass(frozen=True)
class SatsConfig(PseudoConfig):
    """Settings of the pseudo-labels, and weights of distillation and attention transfer.

    Attributes:
        adaptive_factor: off, as in the official code, which computes the factor and leaves it unused.
        strength: weight of the unbiased distillation of the old channels, as ``mib`` has it.
        alpha: multiplies the teacher's logits.
        attention: weight of the transfer of attention.
        head_layout: ``permuted``; ``official_reshape`` mixes up attention heads and patches where a block has more than
            one head, as the official code does.
    """

    adaptive_factor: bool = False
    strength: float = 20.0
    alpha: float = 1.0
    attention: float = 20.0
    head_layout: HeadLayout = "permuted"

    def rules(self) -> tuple[tuple[bool, str], ...]:
        """What must hold, and what to say otherwise."""
        return (
            *super().rules(),
            at_least_zero("strength", self.strength),
            (0 < self.alpha < math.inf, f"objective.alpha must be > 0 and finite, got {self.alpha}"),
            at_least_zero("attention", self.attention),
            among("head_layout", self.head_layout, HeadLayout),
        )


class SelfAttentionTransfer(PseudoLabelled):
    """Cross entropy with PLOP's pseudo-labels, and for every class the keys that its patches attend to.

    Keys belong to patches of the same class and of all others: what is held is attention within and between classes.
    Pseudo-labels decide which class a patch is of; the background has no term.

    Blocks: the last of each stage of a SegFormer, as in the paper; of a plain transformer, for which it has no rule,
    those at a quarter, a half, three quarters and the end. The sum over blocks is divided by their number (the official
    code divides by 4, which is the number of stages there).

    Departures from the official code, which does not run as published: the pseudo-labels' settings are those of
    ``plop`` here (``entropy=mean``, ``median=official_histogram`` and ``ce_denominator=all_pixels`` are the code's),
    attention heads are kept apart (``head_layout``). Its variants without classes, one average over all patches or
    every patch by itself, are not here.
    """

    Config = SatsConfig
    summary = "cross entropy with pseudo-labels + unbiased distillation + transfer of each class's attention"
    needs = frozenset({"teacher", "attention"})

    def loss(self, outputs: Outputs, targets: Tensor, teacher: Outputs | None, task: Task) -> Tensor:
        """CE on pseudo-labels + strength * unbiased KD + attention * transfer; the first round is plain CE."""
        config = self.config
        if teacher is None:
            return labelled_entropy(outputs, targets, config)
        labels, factor = self.relabelled(targets, teacher.logits, task)
        entropy, distilled = pixel_losses(outputs.logits, labels, teacher.logits, alpha=config.alpha, reduction="none")
        transfer = attention_transfer(
            outputs.attention,
            teacher.attention,
            [labels_on_cells(labels, attention.shape[2]) for attention in outputs.attention],
            head_layout=config.head_layout,
        )
        loss = self.averaged(entropy, labels, factor) + config.strength * distilled.mean()
        return loss + config.attention * transfer
