"""What a network shows of itself while it computes: hooks that are there for one forward, and only if asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sapwood.backbones.base import AttentionBlock, Backbone, Tokens
from sapwood.errors import ConfigError
from sapwood.functional.resize import at_size
from sapwood.heads.base import Head
from sapwood.heads.dense import DenseHead
from sapwood.objectives.base import Outputs


@contextmanager
def observing(backbone: Backbone, needs: frozenset[str]) -> Iterator[Callable[[Tokens], Tokens]]:
    """Keep what the forward that runs inside gives away; a function is had that adds it to that forward's tokens.

    The network stays on fused attention: attention maps are computed once more from what the projections of queries
    and keys gave, with adapters and all. Nothing is copied, and gradients flow through what is kept.

    Args:
        backbone: its hooks are gone when the block is left, before the function is called.
        needs: names as in ``Objective.needs``; none of ``maps``, ``attention`` and ``saliency`` sets no hook.

    Raises:
        ConfigError: the backbone shows no attention maps, and they are needed.
    """
    maps = backbone.maps if "maps" in needs else ()
    blocks = _attention_blocks(backbone, needs)
    seen: dict[str, Tensor] = {}

    def keep(path: str, module: nn.Module, inputs: object, output: Tensor) -> None:
        seen[path] = output

    paths = {*maps, *(site.module for block in blocks for site in (block.query, block.key))}
    handles = [backbone.get_submodule(path).register_forward_hook(partial(keep, path)) for path in paths]

    def observed(tokens: Tokens) -> Tokens:
        attention = _attention(backbone, blocks, seen, tokens) if "attention" in needs else ()
        return replace(
            tokens,
            maps=tuple(backbone.to_map(seen[path], tokens.grid).float() for path in maps),
            attention=attention,
            saliency=_saliency(backbone, blocks[-1], seen, tokens, attention) if "saliency" in needs else None,
        )

    try:
        yield observed if paths else lambda tokens: tokens
    finally:
        for handle in handles:
            handle.remove()


def _attention_blocks(backbone: Backbone, needs: frozenset[str]) -> tuple[AttentionBlock, ...]:
    if not needs & {"attention", "saliency"}:
        return ()
    blocks = backbone.attention_blocks()
    if not blocks:
        remedy = "take a vision transformer"
        if "attention" not in needs:
            remedy += ", or give a map for each picture (a folder saliency beside images and masks)"
        raise ConfigError(f"{backbone.info.name} shows no attention maps, and the objective needs them; {remedy}")
    return blocks if "attention" in needs else blocks[-1:]


def _attention(
    backbone: Backbone, blocks: tuple[AttentionBlock, ...], seen: dict[str, Tensor], tokens: Tokens
) -> tuple[Tensor, ...]:
    patches = slice(backbone.info.prefix_tokens, None)
    return tuple(_softmax(backbone, block, seen, tokens, patches) for block in blocks)


@torch.no_grad()
def _saliency(
    backbone: Backbone, last: AttentionBlock, seen: dict[str, Tensor], tokens: Tokens, attention: tuple[Tensor, ...]
) -> Tensor:
    """What share of its attention the last block has for each patch, [B, h, w], mean over the heads.

    It is the class token's, or without one that of all patches on average.
    """
    prefix = backbone.info.prefix_tokens
    if backbone.class_token:
        chosen = _softmax(backbone, last, seen, tokens, slice(0, 1))
    elif attention:
        chosen = attention[-1]
    else:
        chosen = _softmax(backbone, last, seen, tokens, slice(prefix, None))
    share = chosen[..., prefix:].mean(dim=(1, 2))
    height, width = tokens.grid if last.level is None else tokens.levels[last.level].shape[-2:]
    maps = share.unflatten(1, (height // last.reduction, width // last.reduction))
    if last.reduction == 1:
        return maps
    return F.interpolate(maps[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]


def _softmax(backbone: Backbone, block: AttentionBlock, seen: dict[str, Tensor], tokens: Tokens, rows: slice) -> Tensor:
    """Attention maps [B, heads, L, S] of the queries at ``rows``."""
    halves = []
    for site in (block.query, block.key):
        output = seen[site.module]
        start, stop = site.rows or (0, site.outputs)
        halves.append(output.flatten(1, -2)[..., start:stop].unflatten(-1, (block.heads, -1)).transpose(1, 2))
    queries, keys = halves
    return backbone.attention_scores(block, queries[:, :, rows], keys, tokens.grid).softmax(dim=-1)


def outputs_of(head: Head, tokens: Tokens, size: Sequence[int], needs: frozenset[str] = frozenset()) -> Outputs:
    """Training logits of tokens and what is needed beside; a map of logits is brought to ``size`` (H, W) pixels."""
    maps, parts = tokens.maps, None
    if "parts" in needs and not isinstance(head, DenseHead):
        raise ConfigError(
            "the objective takes apart the scores that the dense head gives to pixels; this head has none"
        )
    if isinstance(head, DenseHead) and needs & {"maps", "parts"}:
        decoded = head.decode(tokens)
        logits = head.classify(decoded)
        if "maps" in needs:
            maps = (*maps, decoded)
        if "parts" in needs:
            parts = _parts(head, decoded)
    else:
        logits = head.training_logits(tokens)
    return Outputs(
        at_size(logits, size) if logits.ndim == 4 else logits,
        features=tokens.patches if "features" in needs else None,
        maps=maps,
        grid_logits=logits if "grid" in needs else None,
        attention=tokens.attention,
        saliency=tokens.saliency,
        parts=parts,
    )


def _parts(head: DenseHead, decoded: Tensor) -> tuple[Tensor, Tensor]:
    if head.stems is not None:
        raise ConfigError("the objective takes apart what all classes read from one decoder; head.stem must be shared")
    weight = head.classifier.weight[:, :, None, None]
    return F.conv2d(decoded, weight.clamp(min=0)), F.conv2d(decoded, weight.clamp(max=0))
