"""One class for every plain vision transformer of transformers, driven by a row of the table of families."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from sapwood.backbones.base import Attention, Site, Tokens, patch_grid
from sapwood.backbones.families import FAMILIES, INPUT_KEYS
from sapwood.backbones.library import LibraryBackbone, pixels


class TransformersBackbone(LibraryBackbone):
    """A vision encoder of transformers behind the interface of ``Backbone``.

    Args:
        model: an instance of the family's model class.
        family: key of ``FAMILIES``.
        origin: see ``LibraryBackbone``.
    """

    uniform = True

    def __init__(self, model: Any, family: str, **origin: Any) -> None:
        row, config = FAMILIES[family], model.config
        table = pixels(config.image_size)
        shape = {
            "family": family,
            "dim": config.hidden_size,
            "patch": pixels(config.patch_size),
            "depth": config.num_hidden_layers,
            "heads": config.num_attention_heads,
            "prefix_tokens": row.prefix_tokens(config),
            "image_size": min(table, row.working_size or table),
        }
        super().__init__(model, shape, usual=(row.mean, row.std), **origin)

    def forward(self, images: Tensor) -> Tokens:
        """Tokens of normalised pictures [B, 3, H, W]; H and W multiples of the patch, else ConfigError."""
        row = FAMILIES[self.info.family]
        grid = patch_grid(images, self.info.patch)
        output = self.model(pixel_values=images, **row.forward_options)
        hidden = output.last_hidden_state
        patches = hidden[:, self.info.prefix_tokens :]
        pooled = hidden[:, 0] if row.pooled == "class_token" else output.pooler_output
        if pooled is None:  # a SigLIP checkpoint saved without its pooling head
            pooled = patches.mean(dim=1)
        return Tokens(pooled, patches, grid)

    def _set_attention(self, implementation: Attention) -> None:
        self.model.set_attn_implementation(implementation)

    def _find_maps(self) -> Iterator[str]:
        return (f"model.{FAMILIES[self.info.family].blocks}.{index}" for index in range(self.info.depth))

    def _find_sites(self) -> Iterator[Site]:
        row = FAMILIES[self.info.family]
        for index in range(self.info.depth):
            for part, path in row.parts.items():
                module_path = f"model.{row.blocks}.{index}.{path}"
                try:
                    module = self.get_submodule(module_path)
                except AttributeError:  # DINOv2-giant's gated MLP has no fc1 and fc2
                    continue
                assert isinstance(module, nn.Linear)
                yield Site(
                    name=f"block.{index}.{part}",
                    kind="linear",
                    inputs=module.in_features,
                    outputs=module.out_features,
                    input_key=f"block.{index}.{INPUT_KEYS[part]}",
                    module=module_path,
                )
