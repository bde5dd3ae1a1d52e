"""Mix Transformers, the encoders of SegFormer (Xie et al. 2021): four stages, no positions, any size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sapwood.backbones.base import Attention, AttentionBlock, Site, Tokens, patch_grid
from sapwood.backbones.families import INPUT_KEYS
from sapwood.backbones.library import LibraryBackbone

_TRAINED_AT = 224  # the config does not say; the encoders were trained on ImageNet at this size
_MODULES = {
    "q": "attention.q_proj",
    "k": "attention.k_proj",
    "v": "attention.v_proj",
    "o": "attention.o_proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}


class MitBackbone(LibraryBackbone):
    """A ``SegformerModel`` of transformers.

    ``levels`` are the maps of the stages, at a 4th, 8th, 16th and 32nd of the picture's size. Patches are all of them
    at the first one's grid, side by side: d is the sum of their channels. Pooled is the mean patch.

    Args:
        model: a ``SegformerModel``.
        origin: see ``LibraryBackbone``.
    """

    def __init__(self, model: Any, **origin: Any) -> None:
        for stage in model.stages:
            stage.reshape = True  # some checkpoints ask for the last stage as a sequence
        config = model.config
        shape = {
            "family": "mit",
            "dim": sum(config.hidden_sizes),
            "patch": math.prod(config.strides),
            "depth": sum(config.depths),
            "heads": config.num_attention_heads[-1],
            "prefix_tokens": 0,
            "image_size": _TRAINED_AT,
            "stride": config.strides[0],
        }
        super().__init__(model, shape, **origin)

    def forward(self, images: Tensor) -> Tokens:
        """Tokens of normalised pictures [B, 3, H, W]; H and W multiples of 32, else ConfigError."""
        patch_grid(images, self.info.patch)
        levels: list[Tensor] = []
        for stage in self.model.stages:
            levels.append(stage(levels[-1] if levels else images))
        height, width = levels[0].shape[-2:]
        maps = [levels[0], *(F.interpolate(level, (height, width), mode="bilinear") for level in levels[1:])]
        patches = torch.cat(maps, dim=1).flatten(2).transpose(1, 2)
        return Tokens(patches.mean(dim=1), patches, (height, width), tuple(levels))

    def attention_blocks(self) -> tuple[AttentionBlock, ...]:
        """The last block of each stage."""
        sites = {site.name: site for site in self.sites}
        found = []
        for number, stage in enumerate(self.model.stages):
            name, own = f"stage.{number}.block.{len(stage.blocks) - 1}", stage.blocks[-1].attention
            heads, reduction = own.num_attention_heads, own.sequence_reduction_ratio
            found.append(AttentionBlock(sites[f"{name}.q"], sites[f"{name}.k"], heads, number, reduction))
        return tuple(found)

    def _set_attention(self, implementation: Attention) -> None:
        self.model.set_attn_implementation(implementation)

    def _find_maps(self) -> Iterator[str]:
        return (f"model.stages.{stage}" for stage in range(len(self.model.stages)))

    def _find_sites(self) -> Iterator[Site]:
        index = 0
        for number, stage in enumerate(self.model.stages):
            for within, block in enumerate(stage.blocks):
                name = f"stage.{number}.block.{within}"
                # Keys and values come from a map of fewer positions, where there is a reduction.
                reduced = {"k": "reduced", "v": "reduced"} if block.attention.sequence_reduction_ratio > 1 else {}
                keys = {**INPUT_KEYS, **reduced}
                for part, path in _MODULES.items():
                    module = block.get_submodule(path)
                    assert isinstance(module, nn.Linear)
                    yield Site(
                        name=f"{name}.{part}",
                        kind="linear",
                        inputs=module.in_features,
                        outputs=module.out_features,
                        input_key=f"{name}.{keys[part]}",
                        module=f"model.stages.{number}.blocks.{within}.{path}",
                        index=index,
                    )
                index += 1
