"""The image encoder of Segment Anything (Kirillov et al. 2023): windowed attention, positions made for one size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sapwood.backbones.base import (
    Attention,
    AttentionBlock,
    Site,
    Tokens,
    patch_grid,
)
from sapwood.backbones.families import INPUT_KEYS
from sapwood.backbones.library import LibraryBackbone, pixels
from sapwood.errors import ConfigError

_MODULES = {"q": "attn.qkv", "k": "attn.qkv", "v": "attn.qkv", "o": "attn.proj", "fc1": "mlp.lin1", "fc2": "mlp.lin2"}
_FUSED = "qkv"


class SamBackbone(LibraryBackbone):
    """A ``SamVisionModel`` of transformers; patches are the neck's output, pooled is their mean.

    Both tables of positions belong to one size of picture. ``resize`` brings them to the state's size once: the
    absolute ones bicubically, the relative ones of the global blocks linearly, as the model itself would in every
    forward. Blocks with windows do not depend on the size.

    Args:
        model: a ``SamVisionModel``.
        origin: see ``LibraryBackbone``.
    """

    def __init__(self, model: Any, **origin: Any) -> None:
        config = model.config
        shape = {
            "family": "sam",
            "dim": config.output_channels,
            "patch": pixels(config.patch_size),
            "depth": config.num_hidden_layers,
            "heads": config.num_attention_heads,
            "prefix_tokens": 0,
            "image_size": pixels(config.image_size),
            "fixed_size": True,
        }
        super().__init__(model, shape, **origin)

    def forward(self, images: Tensor) -> Tokens:
        """Tokens of normalised pictures [B, 3, S, S], S the backbone's ``image_size``, else ConfigError."""
        grid = patch_grid(images, self.info.patch)
        side = self.info.image_size
        if tuple(images.shape[-2:]) != (side, side):
            height, width = images.shape[-2:]
            raise ConfigError(f"{self.info.name} was opened for {side}x{side} px, pictures are {height}x{width} px")
        patches = self.model(pixel_values=images).last_hidden_state.flatten(2).transpose(1, 2)
        return Tokens(patches.mean(dim=1), patches, grid)

    def to_map(self, output: Tensor, grid: tuple[int, int]) -> Tensor:
        """What a block gave, [B, h, w, c], as a feature map [B, c, h, w]."""
        return output.permute(0, 3, 1, 2)

    def attention_blocks(self) -> tuple[AttentionBlock, ...]:
        """Those of the blocks at 1/4, 1/2, 3/4 and the end of the depth that see the whole picture, not windows."""
        layers = self.model.vision_encoder.layers
        return tuple(block for block in super().attention_blocks() if layers[block.query.block].window_size == 0)

    def attention_scores(self, block: AttentionBlock, queries: Tensor, keys: Tensor, grid: tuple[int, int]) -> Tensor:
        """What a block takes the softmax of: with its relative positions."""
        scores = super().attention_scores(block, queries, keys, grid)
        own = self.model.vision_encoder.layers[block.query.block].attn
        if own.use_rel_pos:
            tables = (own.rel_pos_h.float(), own.rel_pos_w.float())
            positions = own.get_decomposed_rel_pos(queries.float().flatten(0, 1), *tables, grid, grid)
            scores = scores + positions.reshape_as(scores)
        return scores

    def _resize(self, height: int, width: int) -> None:
        if height != width:
            raise ConfigError(f"image_size must be square for {self.info.name}, got {height}x{width}; try {width}")
        if height == self.info.image_size:
            return
        encoder = self.model.vision_encoder
        encoder.patch_embed.image_size = (height, width)
        self.model.config.image_size = height
        side = height // self.info.patch
        if encoder.pos_embed is not None:
            table = F.interpolate(encoder.pos_embed.permute(0, 3, 1, 2), (side, side), mode="bicubic")
            encoder.pos_embed = _frozen(table.permute(0, 2, 3, 1))
        for layer in encoder.layers:
            if layer.window_size == 0 and layer.attn.use_rel_pos:
                layer.attn.rel_pos_h = _stretched(layer.attn.rel_pos_h, 2 * side - 1)
                layer.attn.rel_pos_w = _stretched(layer.attn.rel_pos_w, 2 * side - 1)

    def _set_attention(self, implementation: Attention) -> None:
        from transformers.models.sam.modeling_sam import SAM_VISION_ATTENTION_CLASSES

        # The model picks a class when it is built; the classes differ in their forward alone.
        for layer in self.model.vision_encoder.layers:
            layer.attn.__class__ = SAM_VISION_ATTENTION_CLASSES[implementation]

    def _find_maps(self) -> Iterator[str]:
        return (f"model.vision_encoder.layers.{index}" for index in range(self.info.depth))

    def _find_sites(self) -> Iterator[Site]:
        for index in range(self.info.depth):
            for part, path in _MODULES.items():
                module_path = f"model.vision_encoder.layers.{index}.{path}"
                module = self.get_submodule(module_path)
                assert isinstance(module, nn.Linear)
                outputs, rows = module.out_features, None
                if part in _FUSED:
                    outputs //= len(_FUSED)
                    start = _FUSED.index(part) * outputs
                    rows = (start, start + outputs)
                yield Site(
                    name=f"block.{index}.{part}",
                    kind="linear",
                    inputs=module.in_features,
                    outputs=outputs,
                    input_key=f"block.{index}.{INPUT_KEYS[part]}",
                    module=module_path,
                    rows=rows,
                )


def _stretched(table: Tensor, length: int) -> nn.Parameter:
    """Relative positions [L, c] at another number of distances [length, c]."""
    return _frozen(F.interpolate(table.t().unsqueeze(0), length, mode="linear")[0].t())


def _frozen(table: Tensor) -> nn.Parameter:
    return nn.Parameter(table.detach().clone(memory_format=torch.contiguous_format), requires_grad=False)
