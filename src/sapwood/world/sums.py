"""Sums over the processes that learn together, and what keeps the numbers those of one process.

The trainer gives each process a piece of every batch, multiplies the loss of a piece by its share of the pictures, and
adds the gradients up. A mean over pictures then comes out as if the batch had been in one piece; what is divided by
other counts asks ``divisor``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as group
from torch import Tensor, nn

from sapwood.world import device, size, together

_share: list[float] = []


class _Total(torch.autograd.Function):
    """The sum over processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        whole = value.detach().clone()
        with together():
            group.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Total.forward(ctx, gradients[0].contiguous())


def total(value: Tensor) -> Tensor:
    """Sum over all processes, in each of them; gradients flow through it."""
    return value if size() == 1 else _Total.apply(value)


def summed(counts: Tensor) -> Tensor:
    """``total`` of a tensor on the CPU."""
    return counts if size() == 1 else total(counts.to(device())).cpu()


def either(*flags: bool) -> tuple[bool, ...]:
    """For each flag whether any process has set it."""
    if size() == 1:
        return flags
    return tuple(bool(count) for count in total(torch.tensor(flags, dtype=torch.int64, device=device())).tolist())


def gathered(rows: Tensor, places: Iterable[int], count: int) -> Tensor:
    """The rows [n, ...] of every process, at their places among ``count``; on the CPU, no place is given twice."""
    if size() == 1:
        return rows
    whole = rows.new_zeros(count, *rows.shape[1:])
    where = list(places)
    whole[where] = rows[: len(where)]
    return summed(whole)


@contextmanager
def piece(share: float) -> Iterator[None]:
    """What is computed inside is a piece of a batch and has this share, in 0..1, of its pictures; 0 is on loan."""
    _share.append(share)
    try:
        yield
    finally:
        _share.pop()


def share() -> float | None:
    """The share of the present piece; None where a batch is whole, in one process or in each of several."""
    return _share[-1] if _share and size() > 1 else None


def divisor(count: Tensor) -> Tensor:
    """What a sum over ``count`` things of the present piece is divided by.

    The trainer multiplies a piece's loss by its share and adds the pieces up. A sum that is divided by this, n share
    with n the things of the whole batch, then comes out as if the batch had been in one piece.
    """
    if (mine := share()) is None:
        return count.clamp(min=1)
    whole = total(count * (mine > 0)).clamp(min=1)
    return whole * mine if mine else whole


def add_gradients(parameters: Iterable[nn.Parameter], *values: float) -> tuple[float, ...]:
    """Put the sum over all processes into every ``grad``, and give that of the values."""
    if size() == 1:
        return values
    owned = list(parameters)
    grads = [torch.zeros_like(each) if each.grad is None else each.grad for each in owned]
    told = torch.tensor([*values, *(each.grad is not None for each in owned)], dtype=torch.float64, device=device())
    found = total(told).tolist()
    flat = total(torch.cat([grad.reshape(-1) for grad in grads]))
    # What no process has a gradient of keeps none: the optimiser leaves it alone.
    for each, grad, part, has in zip(
        owned, grads, flat.split([grad.numel() for grad in grads]), found[len(values) :], strict=True
    ):
        each.grad = grad.copy_(part.reshape(grad.shape)) if has else None
    return tuple(found[: len(values)])


def alike(tensors: Iterable[Tensor]) -> None:
    """Give every process the first one's values."""
    if size() == 1:
        return
    for tensor in tensors:
        with together():
            group.broadcast(tensor.detach(), 0)
