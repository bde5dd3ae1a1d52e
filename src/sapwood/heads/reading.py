"""Features of a round, read in blocks by the heads that are fitted on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sapwood.data.rows import BLOCK, Rows, blocks, evenly, joined
from sapwood.heads.tensors import Features

_MOST_LOGITS = 2**20
_LEAST_PICTURES = 200


class Expanded:
    """Features as a head fits them; what it makes of them exists for a block at a time.

    Attributes:
        y: [n] int64 on the CPU.
    """

    def __init__(self, x: Rows, y: Tensor, expand: Callable[[Tensor], Tensor]) -> None:
        self.y = y.cpu()
        self._x, self._expand = x, expand

    def __len__(self) -> int:
        return len(self.y)

    def __iter__(self) -> Iterator[Features]:
        if len(self) <= BLOCK:
            yield Features(self.whole, self.y.to(self.whole.device))
            return
        for x, y in zip(blocks(self._x), self.y.split(BLOCK), strict=True):
            h = self._expand(x)
            yield Features(h, y.to(h.device))

    @cached_property
    def whole(self) -> Tensor:
        """All at once, [n, M]; kept."""
        return self._expand(self._x[0 : len(self)])

    def at(self, index: Tensor) -> Iterator[Features]:
        """Those of these indices, in their order, in blocks."""
        if len(self) <= BLOCK:
            h = self.whole[index.to(self.whole.device)]
            yield Features(h, self.y[index].to(h.device))
            return
        for part in index.split(BLOCK):
            h = self._expand(self._x[part])
            yield Features(h, self.y[part].to(h.device))

    def joined(self, others: Expanded) -> Expanded:
        """These and ``others`` behind them."""
        both = Expanded(joined(self._x, others._x), torch.cat([self.y, others.y]), self._expand)
        if len(both) <= BLOCK:
            both.whole = torch.cat([self.whole, others.whole])
        return both


def asked(count: int, classes: int) -> Tensor:
    """Indices of the pictures that a temperature is chosen on: all, or as many, evenly, as give a million logits."""
    return evenly(count, max(_LEAST_PICTURES, _MOST_LOGITS // max(classes, 1)))


@runtime_checkable
class Joins(Protocol):
    """A head of sums that held-out pictures can join after ``fit``, once they have chosen its temperature.

    For adapters that change its logits, by which it cannot choose alone.
    """

    def join(self, held: Features) -> None:
        """Add them to what it predicts from, and to nothing else."""


def answers(data: Expanded, logits: Callable[[Tensor], Tensor], classes: int) -> tuple[float, Features]:
    """Share of pictures whose highest logit is their class; logits [m, K] and classes of those that are ``asked``."""
    right, first, wanted = 0, 0, asked(len(data), classes)
    found, labels = torch.empty(0), torch.empty(0)
    for h, y in data:
        said = logits(h)
        right += int((said.argmax(1) == y).sum())
        if not first:
            found, labels = said.new_empty(len(wanted), said.shape[1]), y.new_empty(len(wanted))
        here = (wanted >= first) & (wanted < first + len(y))
        places = here.nonzero().flatten().to(said.device)
        chosen = (wanted[here] - first).to(said.device)
        found[places], labels[places.to(y.device)] = said[chosen], y[chosen.to(y.device)]
        first += len(y)
    return right / max(first, 1), Features(found, labels)
