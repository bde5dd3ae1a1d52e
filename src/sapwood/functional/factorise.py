"""A finished change of a weight as one low-rank pair, which is what adapters of other libraries hold.

Shapes are those of ``low_rank``: A [r, in] (down) and B [out, r] (up); of a convolution [r, in, kh, kw] and
[out, r, 1, 1]. The change is B A, without a scale.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sapwood.functional.low_rank import compose

Pair = tuple[Tensor, Tensor]
"""(A, B): down and up."""


def concatenate(pairs: Sequence[Pair]) -> Pair:
    """The sum of several pairs as one, its rank the sum of theirs: sum B_k A_k = [B_1 B_2 ...] [A_1; A_2; ...].

    A pair whose product is zero because a factor is takes no rank; if all are, the rank is 0.

    >>> down, up = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]])
    >>> A, B = concatenate([(down, up), (down, 0 * up), (10 * down, up)])
    >>> A.tolist(), B.tolist()
    ([[1.0, 2.0], [10.0, 20.0]], [[3.0, 3.0]])
    """
    live = [pair for pair in pairs if pair[0].any() and pair[1].any()]
    if not live:
        down, up = pairs[0]
        return down[:0], up[:, :0]
    return torch.cat([down for down, _ in live]), torch.cat([up for _, up in live], 1)


def numerical_factors(change: Tensor) -> Pair:
    """A dense change as a pair at its numerical rank, by singular values; the work is done in float64.

    What counts are the singular values above max(out, in) * eps * the largest, eps that of the change's dtype: below,
    round-off alone may have made them. The square root of each goes to either side.

    Args:
        change: [out, in] or [out, in, kh, kw], float32 or float64.

    Returns:
        (A, B) in the change's dtype; the rank is 0 for a change of zeros.

    >>> A, B = numerical_factors(torch.tensor([[2.0, 4.0], [1.0, 2.0], [0.0, 0.0]]))
    >>> A.shape, B.shape
    (torch.Size([1, 2]), torch.Size([3, 1]))
    """
    flat = change.detach().flatten(1)
    left, values, right = torch.linalg.svd(flat.double(), full_matrices=False)
    floor = max(flat.shape) * torch.finfo(change.dtype).eps * values[0]
    rank = int((values > floor).sum())
    root = values[:rank].sqrt()
    down = (root[:, None] * right[:rank]).to(change).unflatten(1, change.shape[1:])
    up = (left[:, :rank] * root).to(change)
    return down, up.reshape(*up.shape, *(1 for _ in change.shape[2:]))


def fuse(pairs: Sequence[tuple[Pair, tuple[int, int]]], outputs: int) -> Pair:
    """Pairs that change some rows each of one weight, as one pair for the whole weight.

    Args:
        pairs: (A, B) of linear layers and the (start, stop) of the rows that B A changes.
        outputs: rows of the whole weight.

    >>> one, two = (torch.ones(1, 2), torch.ones(1, 1)), (2 * torch.ones(1, 2), torch.ones(1, 1))
    >>> A, B = fuse([(one, (0, 1)), (two, (2, 3))], 3)
    >>> (B @ A).tolist()
    [[1.0, 1.0], [0.0, 0.0], [2.0, 2.0]]
    """
    whole = []
    for (down, up), (start, stop) in pairs:
        placed = up.new_zeros(outputs, up.shape[1])
        placed[start:stop] = up
        whole.append((down, placed))
    return concatenate(whole)


def factor_error(change: Tensor, pair: Pair) -> float:
    """Largest entry of |B A - change|, in float64.

    Args:
        change: [out, in] or [out, in, kh, kw].
        pair: (A, B) of any rank, 0 too.
    """
    down, up = (factor.detach().double() for factor in pair)
    return (compose(down, up, 1.0) - change.detach().double()).abs().max().item()
