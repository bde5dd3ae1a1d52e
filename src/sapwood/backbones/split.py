"""Backbones that are a chain of blocks: run up to a block, and on from there with what it was given."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from sapwood.backbones.base import Tokens


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
