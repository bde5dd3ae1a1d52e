"""Vision transformers of timm as backbones, with q, k and v in one fused projection (extra ``timm``)."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sapwood.backbones.base import (
    Attention,
    AttentionBlock,
    Backbone,
    BackboneInfo,
    Site,
    Tokens,
    fingerprint,
    first_line,
    patch_grid,
)
from sapwood.backbones.families import FAMILIES, INPUT_KEYS
from sapwood.errors import BackboneError, UnknownName

PREFIX = "timm:"
_MODULES = {"o": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}


class TimmBackbone(Backbone):
    """A ``VisionTransformer`` of timm, made with ``num_classes=0, dynamic_img_size=True``.

    Args:
        model: as ``timm.create_model`` gives it.
        name, revision: see ``BackboneInfo``.
    """

    uniform = True

    def __init__(self, model: Any, *, name: str, revision: str) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        settings = model.pretrained_cfg
        side = model.patch_embed.img_size[0]
        dinov2 = FAMILIES["dinov2"]
        self.info = BackboneInfo(
            name=name,
            family="timm",
            revision=revision,
            sha256=fingerprint(model),
            licence=str(settings.get("license") or "unknown"),
            dim=model.embed_dim,
            patch=model.patch_embed.patch_size[0],
            depth=len(model.blocks),
            heads=model.blocks[0].attn.num_heads,
            prefix_tokens=model.num_prefix_tokens,
            image_size=(dinov2.working_size or side) if side == dinov2.table_size else side,
            mean=tuple(settings["mean"]),
            std=tuple(settings["std"]),
        )
        self.sites = tuple(self._find_sites())
        self.maps = tuple(f"model.blocks.{index}" for index in range(self.info.depth))
        self.eval()

    def forward(self, images: Tensor) -> Tokens:
        """Tokens of normalised pictures [B, 3, H, W]; H and W multiples of the patch, else ConfigError."""
        grid = patch_grid(images, self.info.patch)
        hidden = self.model.forward_features(images)
        pooled = self.model.forward_head(hidden, pre_logits=True)
        return Tokens(pooled, hidden[:, self.info.prefix_tokens :], grid)

    @property
    def class_token(self) -> bool:
        """Whether the first token stands for the picture; some models have registers alone."""
        return bool(self.model.has_class_token)

    def attention_blocks(self) -> tuple[AttentionBlock, ...]:
        """Blocks at 1/4, 1/2, 3/4 and the end of the depth; empty where attention is not the usual product."""
        from timm.models.vision_transformer import Attention as Usual

        return super().attention_blocks() if all(type(block.attn) is Usual for block in self.model.blocks) else ()

    def attention_scores(self, block: AttentionBlock, queries: Tensor, keys: Tensor, grid: tuple[int, int]) -> Tensor:
        """What a block takes the softmax of; some models normalise queries and keys first."""
        own = self.model.blocks[block.query.block].attn
        return super().attention_scores(block, _normed(own.q_norm, queries), _normed(own.k_norm, keys), grid)

    def _set_attention(self, implementation: Attention) -> None:
        for block in self.model.blocks:
            block.attn.fused_attn = implementation == "sdpa"

    def _find_sites(self) -> Iterator[Site]:
        for index, block in enumerate(self.model.blocks):
            fused = block.attn.qkv
            width = fused.out_features // 3
            for order, part in enumerate("qkv"):
                rows = (order * width, (order + 1) * width)
                yield _site(index, part, "attn.qkv", fused.in_features, width, rows)
            for part, path in _MODULES.items():
                module = _linear(block, path)
                if module is not None:
                    yield _site(index, part, path, module.in_features, module.out_features, None)


def open_timm(name: str, revision: str | None = None) -> TimmBackbone:
    """``timm:NAME`` with its pre-trained weights from the hub, safetensors only.

    Raises:
        BackboneError: timm is missing or broken, its model is no plain vision transformer, no weights.
        UnknownName: timm has no such model.
    """
    timm = _import_timm()
    wanted = name.removeprefix(PREFIX)
    if not timm.is_model(wanted):
        near = difflib.get_close_matches(wanted, timm.list_models(), 1)
        hint = f" Did you mean {PREFIX + near[0]!r}?" if near else ""
        raise UnknownName(f"timm has no model {wanted!r}.{hint} timm.list_models() lists them")
    from sapwood.backbones.folder import WEIGHTS, missing_weights
    from sapwood.backbones.hub import snapshot

    try:
        # Made without weights first: only the model tells where its weights lie.
        source = timm.create_model(wanted, pretrained=False, num_classes=0, dynamic_img_size=True)
    except (TypeError, RuntimeError) as error:
        raise BackboneError(f"timm's {wanted} cannot be used as a backbone ({first_line(error)})") from error
    if not isinstance(source, timm.models.VisionTransformer) or not hasattr(source.blocks[0].attn, "qkv"):
        raise BackboneError(f"timm's {wanted} is a {type(source).__name__}; only plain vision transformers are known")
    repo = source.pretrained_cfg.get("hf_hub_id")
    if not repo:
        raise BackboneError(f"timm's {wanted} has no weights on the hub; pick one of timm.list_pretrained()")
    folder = snapshot(repo, revision)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise BackboneError(f"{folder}: {missing_weights([file.name for file in folder.iterdir()])}")
    # A file given by path is read by its ending, so that timm reads safetensors and cannot fall back to a pickle.
    model = timm.create_model(
        wanted,
        pretrained=True,
        num_classes=0,
        dynamic_img_size=True,
        pretrained_cfg_overlay={"file": str(weights), "custom_load": False},
    )
    return TimmBackbone(model.to(torch.float32), name=name, revision=folder.name)


def _import_timm() -> Any:
    try:
        import timm
    except Exception as error:  # a torchvision that does not fit torch fails with RuntimeError or OSError
        raise BackboneError(f"timm cannot be imported ({first_line(error)}); pip install 'sapwood[timm]'") from error
    return timm


def _linear(block: nn.Module, path: str) -> nn.Linear | None:
    try:
        module = block.get_submodule(path)
    except AttributeError:
        return None
    return module if isinstance(module, nn.Linear) else None


def _normed(norm: nn.Module, x: Tensor) -> Tensor:
    # Under autocast the projection gives bfloat16 and the norm's weights are float32.
    return norm(x.to(next(norm.parameters(), x).dtype))


def _site(block: int, part: str, path: str, inputs: int, outputs: int, rows: tuple[int, int] | None) -> Site:
    return Site(
        name=f"block.{block}.{part}",
        kind="linear",
        inputs=inputs,
        outputs=outputs,
        input_key=f"block.{block}.{INPUT_KEYS[part]}",
        module=f"model.blocks.{block}.{path}",
        rows=rows,
    )
