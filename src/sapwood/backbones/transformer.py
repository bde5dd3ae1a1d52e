"""One class for every plain vision transformer of transformers, driven by a row of the table of families."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from sapwood.backbones.base import Attention, Backbone, BackboneInfo, Site, Tokens, fingerprint, patch_grid
from sapwood.backbones.families import FAMILIES, INPUT_KEYS, Channels
from sapwood.backbones.library import pixels


class TransformersBackbone(Backbone):
    """A vision encoder of transformers behind the interface of ``Backbone``.

    Args:
        model: an instance of the family's model class.
        family: key of ``FAMILIES``.
        name, revision, licence: see ``BackboneInfo``.
        mean, std: per channel; None takes the family's.
    """

    def __init__(
        self,
        model: Any,
        family: str,
        *,
        name: str,
        revision: str,
        licence: str,
        mean: Channels | None = None,
        std: Channels | None = None,
    ) -> None:
        super().__init__()
        row = FAMILIES[family]
        config = model.config
        self.model = model.eval().requires_grad_(False)
        table = pixels(config.image_size)
        self.info = BackboneInfo(
            name=name,
            family=family,
            revision=revision,
            sha256=fingerprint(model),
            licence=licence,
            dim=config.hidden_size,
            patch=pixels(config.patch_size),
            depth=config.num_hidden_layers,
            heads=config.num_attention_heads,
            prefix_tokens=row.prefix_tokens(config),
            image_size=min(table, row.working_size or table),
            mean=mean or row.mean,
            std=std or row.std,
        )
        self.sites = tuple(self._find_sites())
        self.maps = tuple(f"model.{row.blocks}.{index}" for index in range(self.info.depth))
        self.eval()

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
