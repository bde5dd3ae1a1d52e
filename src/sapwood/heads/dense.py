"""One logit a class for every patch: a small decoder, then one 1x1 classifier a round (CLoRA, arXiv 2507.19887)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sapwood.backbones.base import Tokens
from sapwood.heads.base import Head, in_full_precision
from sapwood.heads.classifiers import LinearClassifier
from sapwood.heads.settings import fault_unless_among, refuse

Decoder = Literal["none", "conv1x1", "conv3x3"]
_KERNELS = {"conv1x1": 1, "conv3x3": 3}


@dataclass(frozen=True)
class DenseConfig:
    """Settings of the dense head.

    Attributes:
        decoder: ``conv1x1`` or ``conv3x3``, one convolution d -> d with ReLU that goes on learning in every round;
            ``none``: the classifiers sit on the backbone's own features.
    """

    decoder: Decoder = "conv1x1"

    def __post_init__(self) -> None:
        refuse("dense", fault_unless_among("decoder", self.decoder, ("none", *_KERNELS)))


class DenseHead(Head):
    """Logits [B, K, h, w] on the patch grid; channel 0 is the background.

    The 1x1 classifiers of all rounds are the rows of one: a softmax over them runs over all classes so far.

    >>> head = DenseHead(DenseConfig(), dim=8)
    >>> head.grow(3, torch.Generator())
    >>> patches = torch.zeros(2, 6, 8)
    >>> head(Tokens(patches.mean(1), patches, (2, 3))).shape
    torch.Size([2, 3, 2, 3])
    """

    kind: ClassVar[str] = "segmentation"
    name: ClassVar[str] = "dense"
    Config: ClassVar[type] = DenseConfig
    summary: ClassVar[str] = "a decoder (one convolution) and a 1x1 classifier a round, on every patch"
    growth: ClassVar[str] = "d + 1 numbers a class"

    def __init__(self, config: DenseConfig, dim: int) -> None:
        super().__init__(config, dim)
        kernel = _KERNELS.get(config.decoder)
        self.decoder: nn.Conv2d | None = None
        if kernel is not None:
            # Without the initialisation of its own, which would draw from the global generator.
            self.decoder = nn.utils.skip_init(nn.Conv2d, dim, dim, kernel, padding=kernel // 2)
        self.classifier: LinearClassifier

    def grow(self, count: int, generator: torch.Generator) -> None:
        """Append ``count`` classifiers; before the first, the decoder's weights are drawn."""
        if not self.classes and self.decoder is not None:
            _draw(self.decoder, generator)
        super().grow(count, generator)

    def forward(self, tokens: Tokens) -> Tensor:
        """Logits [B, K, h, w] float32 on the grid of the patches [B, h * w, d]."""
        (height, width), patches = tokens.grid, tokens.patches
        return in_full_precision(self._classify, patches.transpose(1, 2).unflatten(2, (height, width)))

    def _classify(self, maps: Tensor) -> Tensor:
        if self.decoder is not None:
            maps = F.relu(self.decoder(maps))
        return F.conv2d(maps, self.classifier.weight[:, :, None, None], self.classifier.bias)


def _draw(layer: nn.Conv2d, generator: torch.Generator) -> None:
    """He's uniform initialisation, drawn on the CPU so that the same seed gives the same weights on every device."""
    fan_in = layer.weight[0].numel()
    with torch.no_grad():
        drawn = 2 * torch.rand(layer.weight.shape, generator=generator) - 1
        layer.weight.copy_(drawn * math.sqrt(6 / fan_in))
        assert layer.bias is not None
        layer.bias.zero_()
