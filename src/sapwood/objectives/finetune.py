"""Cross entropy and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sapwood.functional.losses import scoped_cross_entropy
from sapwood.objectives.base import Objective, Outputs, Scope
from sapwood.objectives.pixels import PixelConfig, labelled_entropy
from sapwood.task import Task


@dataclass(frozen=True)
class FinetuneConfig:
    """Attributes:
    scope: classes of the softmax: ``own`` round or all ``seen``.
    """

    scope: Scope = "own"


class Finetune(Objective):
    """Plain fine-tuning on the round's pictures."""

    Config = FinetuneConfig
    SegmentationConfig = PixelConfig
    summary = "cross entropy"

    def loss(self, outputs: Outputs, targets: Tensor, teacher: Outputs | None, task: Task) -> Tensor:
        """Mean cross entropy over the scope; of pixels over all channels."""
        if isinstance(self.config, PixelConfig):
            return labelled_entropy(outputs, targets, self.config)
        return scoped_cross_entropy(outputs.logits, targets, self.scope_of(task, outputs.logits.shape[1]))
