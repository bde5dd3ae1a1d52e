"""One class for every plain vision transformer of transformers, driven by a row of the table of families."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sapwood.backbones.base import Attention, Backbone, BackboneInfo, Site, Tokens, fingerprint, first_line, patch_grid
from sapwood.backbones.families import FAMILIES, INPUT_KEYS, SIZES, Channels
from sapwood.errors import BackboneError


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
        table = _pixels(config.image_size)
        self.info = BackboneInfo(
            name=name,
            family=family,
            revision=revision,
            sha256=fingerprint(model),
            licence=licence,
            dim=config.hidden_size,
            patch=_pixels(config.patch_size),
            depth=config.num_hidden_layers,
            heads=config.num_attention_heads,
            prefix_tokens=row.prefix_tokens(config),
            image_size=min(table, row.working_size or table),
            mean=mean or row.mean,
            std=std or row.std,
        )
        self.sites = tuple(self._find_sites())
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


def random_backbone(name: str, family: str, size: str, seed: int = 0) -> TransformersBackbone:
    """An encoder with the random weights that transformers gives it; the control of every benchmark.

    The numbers come from ``seed`` alone; the global generator is left as it was.

    Args:
        name: kept in ``info.name``.
        family: key of ``FAMILIES``.
        size: key of ``SIZES``.
        seed: of torch's CPU generator.
    """
    row = FAMILIES[family]
    width, depth, heads = SIZES[size]
    mlp = {"mlp_ratio": 4} if row.widths_by_ratio else {"intermediate_size": 4 * width}
    config = transformers_class(row.config_class)(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        patch_size=row.patch,
        image_size=2 * row.patch if size == "tiny" else row.table_size,
        **mlp,
    )
    # Not torch.manual_seed: it would also seed the generators of the GPUs, which the fork does not restore.
    with torch.random.fork_rng(devices=[]), quiet():
        torch.default_generator.manual_seed(seed)
        model = transformers_class(row.model_class)(config, **row.model_options)
    return TransformersBackbone(model, family, name=name, revision=f"seed {seed}", licence="none (random weights)")


def transformers_class(name: str) -> Any:
    """A class of transformers by name; the import is put off to here, since it takes seconds."""
    try:
        import transformers

        return getattr(transformers, name)
    except (ImportError, AttributeError, RuntimeError) as error:
        why = first_line(error)
        raise BackboneError(f"transformers has no usable {name} ({why}); pip install 'transformers>=5.18'") from error


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no log lines below errors from transformers while a model is made or loaded."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _pixels(value: int | Sequence[int]) -> int:
    """Side in pixels of a size that a config gives as a number or as a (height, width) pair."""
    if isinstance(value, int):
        return value
    if len(set(value)) != 1:
        raise BackboneError(f"the config asks for {tuple(value)} px; only square sizes are known")
    return int(value[0])
