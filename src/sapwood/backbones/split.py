"""Backbones that are a chain of blocks: run up to a block, and on from there with what it was given."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from sapwood.backbones.base import Tokens
from sapwood.errors import ConfigError


class Split(ABC):
    """What a backbone of equal blocks can do besides ``forward``: ``resume`` after ``prefix`` gives the same tokens."""

    @abstractmethod
    def prefix(self, images: Tensor, blocks: int) -> Tensor:
        """Hidden states [B, L, d] that enter block ``blocks``, prefix tokens first.

        Args:
            images: normalised pictures [B, 3, H, W], as of ``Backbone.forward``.
            blocks: how many blocks run, from 0 to one less than the depth.
        """

    @abstractmethod
    def resume(self, hidden: Tensor, blocks: int, grid: tuple[int, int]) -> Tokens:
        """Tokens from what ``prefix`` gave for so many blocks.

        Args:
            hidden: [B, L, d].
            blocks: that are behind it.
            grid: patches (down, across) of the pictures.
        """

    @abstractmethod
    def summary(self, hidden: Tensor) -> Tensor:
        """[B, d] of the hidden states [B, L, d] that leave a block: its class token after the network's final norm.

        Without a class token it is the mean of the patches after that norm.
        """


def chosen_blocks(text: str, depth: int, setting: str) -> set[int]:
    """Indices of blocks: ``all``, or indices and ranges, negative ones from the end: ``0,1``, ``6:12``, ``-4:``.

    Raises:
        ConfigError: no such block; ``setting`` is the name that it speaks of.

    >>> chosen_blocks("0,-2:", 12, "adapter.blocks")
    {0, 10, 11}
    """
    if text == "all":
        return set(range(depth))
    wanted: set[int] = set()
    for piece in text.split(","):
        try:
            if ":" in piece:
                start, stop = (int(end) if end.strip() else None for end in piece.split(":"))
                wanted.update(range(depth)[start:stop])
            else:
                wanted.add(range(depth)[int(piece)])
        except (ValueError, IndexError):
            raise ConfigError(f"{setting}: {piece!r} is not a block of 0..{depth - 1}; write all, 0,1 or -4:") from None
    if not wanted:
        raise ConfigError(f"{setting}={text} names no block of 0..{depth - 1}")
    return wanted


class _Reached(Exception):
    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


def run_until(model: nn.Module, block: nn.Module, images: Tensor, **options: object) -> Tensor:
    """The first argument with which a forward of ``model`` calls ``block``; what comes after it is not computed."""

    def leave(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raise _Reached(inputs[0])

    # The way out of a forward in the middle: what stands before the blocks differs between libraries, this does not.
    handle = block.register_forward_pre_hook(leave)
    try:
        model(pixel_values=images, **options)
    except _Reached as reached:
        return reached.hidden
    finally:
        handle.remove()
    raise ValueError("the forward does not come to this block")
