"""Residual networks (He et al. 2016) in the form that DeepLabV3 gives them (Chen et al. 2017): output stride 16."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sapwood.backbones.base import Kernel, Site, Tokens, patch_grid
from sapwood.backbones.library import LibraryBackbone

_TRAINED_AT = 224  # the config does not say; the hub's encoders were trained on ImageNet at this size
_STEM = 4  # pixels a cell after the stem: a convolution and a pooling, each of stride 2


class ResNetBackbone(LibraryBackbone):
    """A ``ResNetModel`` of transformers whose last stage keeps the grid of the one before.

    There the stride is 1 and the convolutions behind it are dilated by 2 (Chen et al. 2017, section 3.1: atrous
    convolution), so that the weights fit as they are: every second cell is what the network gives at stride 32.
    Batch norm is always in evaluation mode; its statistics stay those of the checkpoint, whatever trains.

    ``levels`` are the maps of the stages, of ResNet-50 at a 4th, 8th, 16th and 16th of the picture's size; patches
    are the last, pooled is their mean. ``maps`` are those of the stages before their last ReLU, as the methods take
    them that were made for residual networks. Sites are the convolutions of the blocks without the shortcuts'.

    Args:
        model: a ``ResNetModel``; its last stage is changed to the dilated form, its weights are not.
        origin: see ``LibraryBackbone``.
    """

    def __init__(self, model: Any, **origin: Any) -> None:
        stages = list(model.encoder.stages)
        _dilate(stages[-1])
        stride = _STEM
        for stage in stages:
            stride *= max(convolution.stride[0] for convolution in _convolutions(stage.layers[0]))
        config = model.config
        shape = {
            "family": "resnet",
            "dim": config.hidden_sizes[-1],
            "patch": stride,
            "depth": sum(config.depths),
            "heads": 0,
            "prefix_tokens": 0,
            "image_size": _TRAINED_AT,
        }
        super().__init__(model, shape, **origin)

    def forward(self, images: Tensor) -> Tokens:
        """Tokens of normalised pictures [B, 3, H, W]; H and W multiples of 16, else ConfigError."""
        grid = patch_grid(images, self.info.patch)
        maps = self.model.embedder(images)
        levels: list[Tensor] = []
        for stage in self.model.encoder.stages:
            maps = stage(maps)
            levels.append(maps)
        patches = maps.flatten(2).transpose(1, 2)
        return Tokens(patches.mean(dim=1), patches, grid, tuple(levels))

    def train(self, mode: bool = True) -> ResNetBackbone:
        """Stays in evaluation mode: batch norm never looks at the batch."""
        return super().train(False)

    def _find_maps(self) -> Iterator[str]:
        for number, stage in enumerate(self.model.encoder.stages):
            yield _show_before_activation(number, stage)

    def _find_sites(self) -> Iterator[Site]:
        index = 0
        for number, stage in enumerate(self.model.encoder.stages):
            for within, block in enumerate(stage.layers):
                for place, layer in enumerate(block.layer):
                    convolution = layer.convolution
                    name = f"stage.{number}.block.{within}.conv{place + 1}"
                    yield Site(
                        name=name,
                        kind="conv",
                        inputs=convolution.in_channels,
                        outputs=convolution.out_channels,
                        input_key=name,
                        module=f"model.encoder.stages.{number}.layers.{within}.layer.{place}.convolution",
                        index=index,
                        kernel=Kernel(
                            convolution.kernel_size, convolution.stride, convolution.padding, convolution.dilation
                        ),
                    )
                index += 1


def temper(model: Any) -> None:
    """Make a ``ResNetModel`` with random weights usable: shrink every block's branch by 1 / sqrt(blocks).

    Batch norm in evaluation mode keeps nothing in bounds where its statistics are those of no data: every block
    would double the variance, 2^33 in ResNet-101. So it grows to e at most.
    """
    with torch.no_grad():
        for stage in model.encoder.stages:
            for block in stage.layers:
                block.layer[-1].normalization.weight.fill_(sum(model.config.depths) ** -0.5)


def _dilate(stage: Any) -> None:
    """Trade a stage's stride of 2 for a dilation of 2 in all that comes after it."""
    strided = False
    for block in stage.layers:
        for convolution in _convolutions(block):
            if strided and convolution.kernel_size > (1, 1):
                convolution.dilation, convolution.padding = (2, 2), (2, 2)
            strided |= convolution.stride == (2, 2)
            convolution.stride = (1, 1)
        if not isinstance(block.shortcut, nn.Identity):
            block.shortcut.convolution.stride = (1, 1)


def _show_before_activation(number: int, stage: Any) -> str:
    """Give what goes into a stage's last activation a module of its own; returns its path in the backbone."""
    last = stage.layers[-1]
    last.activation = nn.Sequential(nn.Identity(), last.activation)
    return f"model.encoder.stages.{number}.layers.{len(stage.layers) - 1}.activation.0"


def _convolutions(block: Any) -> list[nn.Conv2d]:
    """Those of a block's branch, in order."""
    return [layer.convolution for layer in block.layer]
