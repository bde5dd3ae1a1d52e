"""Heads that read several blocks: what the final norm makes of each one's class token, one behind the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sapwood.backbones.base import Backbone, BackboneInfo, Tokens
from sapwood.backbones.split import Split, chosen_blocks
from sapwood.errors import ConfigError
from sapwood.heads.settings import POOLED, PooledConfig


def blocks_read(config: Any, info: BackboneInfo) -> tuple[int, ...]:
    """Indices of the blocks that a head of these settings reads, first to last; none for the backbone's own feature.

    Raises:
        ConfigError: there is no such block.
    """
    if not isinstance(config, PooledConfig) or config.blocks == POOLED:
        return ()
    return tuple(sorted(chosen_blocks(config.blocks, info.depth, "head.blocks")))


def width_read(config: Any, info: BackboneInfo) -> int:
    """Numbers that such a head reads of a picture."""
    return info.dim * max(1, len(blocks_read(config, info)))


def check_read(config: Any, backbone: Backbone) -> None:
    """Refuse blocks that the backbone cannot show.

    Raises:
        ConfigError: there is no such block, or the backbone is no plain chain of them.
    """
    if blocks_read(config, backbone.info) and not isinstance(backbone, Split):
        raise ConfigError(
            f"head.blocks={config.blocks} reads the class tokens of a plain vision transformer, and "
            f"{backbone.info.name} is none; take --set head.blocks={POOLED}"
        )


@contextmanager
def reading(backbone: Backbone, blocks: Sequence[int]) -> Iterator[Callable[[Tokens], Tokens]]:
    """Keep what the blocks give in the forward that runs inside; a function is had that pools it instead.

    Gradients flow through it. The function is called inside, where the forward's autocast holds too.

    Args:
        backbone: a chain of blocks; its hooks are gone when the block is left.
        blocks: indices; without any nothing is hooked, and tokens stay as they are.
    """
    if not blocks:
        yield lambda tokens: tokens
        return
    assert isinstance(backbone, Split)
    seen: dict[int, Tensor] = {}

    def keep(index: int, module: nn.Module, inputs: object, output: Tensor) -> None:
        seen[index] = output

    handles = [
        backbone.get_submodule(backbone.maps[index]).register_forward_hook(partial(keep, index)) for index in blocks
    ]

    def pooled(tokens: Tokens) -> Tokens:
        return replace(tokens, pooled=torch.cat([backbone.summary(seen[index]) for index in blocks], dim=1))

    try:
        yield pooled
    finally:
        for handle in handles:
            handle.remove()
