"""One class for every plain vision transformer of transformers, driven by a row of the table of families."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from sapwood.backbones.base import Attention, Site, Tokens, patch_grid
from sapwood.backbones.families import FAMILIES, INPUT_KEYS
from sapwood.backbones.library import LibraryBackbone, pixels
from sapwood.backbones.split import Split, run_until


class TransformersBackbone(LibraryBackbone, Split):
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

    def prefix(self, images: Tensor, blocks: int) -> Tensor:
        """Hidden states [B, L, d] that enter block ``blocks``; see ``Split``."""
        row = FAMILIES[self.info.family]
        patch_grid(images, self.info.patch)
        chain = self.model.get_submodule(row.blocks)
        return run_until(self.model, chain[blocks], images, **row.forward_options)

    def resume(self, hidden: Tensor, blocks: int, grid: tuple[int, int]) -> Tokens:
        """Tokens from what ``prefix`` gave; see ``Split``."""
        row = FAMILIES[self.info.family]
        for block in self.model.get_submodule(row.blocks)[blocks:]:
            hidden = block(hidden, None)
        norm = self.model.get_submodule(row.norm)
        if row.norm_of == "class_token":
            return Tokens(norm(hidden[:, 0]), hidden[:, self.info.prefix_tokens :], grid)
        hidden = norm(hidden)
        patches = hidden[:, self.info.prefix_tokens :]
        if row.pooled == "class_token":
            return Tokens(hidden[:, 0], patches, grid)
        head = getattr(self.model, "head", None)
        return Tokens(patches.mean(dim=1) if head is None else head(hidden), patches, grid)

    def summary(self, hidden: Tensor) -> Tensor:
        """[B, d] of what leaves a block; see ``Split``."""
        row = FAMILIES[self.info.family]
        norm = self.model.get_submodule(row.norm)
        found: Tensor = norm(hidden[:, 0]) if row.class_tokens else norm(hidden).mean(dim=1)
        return found

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
