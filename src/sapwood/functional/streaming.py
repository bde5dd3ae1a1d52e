"""Ridge regression over more rows than fit into memory: errors of many strengths from sums over blocks of rows.

Y are one-hot rows of classes, and row and target are both multiplied by the root of a weight w. With the
eigendecomposition G = V diag(v) Vᵀ and R = Vᵀ C, the solution at strength s is V D R with D = diag(1 / (v + s)): what a
strength costs then does not depend on the number of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sapwood.functional.statistics import one_hot

_ROUNDING = 1e-9  # of what a row's own fit leaves of it; a thousandth of that is the rounding of a long sum
_FEW = 2**22  # numbers in one-hot rows up to which a product with them is as good as adding rows up


class Weighted(NamedTuple):
    """A block: rows [b, d] float64 not multiplied yet, classes [b] below K, weights [b] float64."""

    x: Tensor
    y: Tensor
    weight: Tensor


class Fit(NamedTuple):
    """Sums of ridge regression: G [d, d], C [d, K], and the sum of weights, which is |Y|²."""

    gram: Tensor
    cross: Tensor
    weight: float


def add_class_sums(total: Tensor, x: Tensor, target: Tensor) -> None:
    """Add rows [n, d] float64 to the sums of their classes [K, d], in place.

    >>> total = torch.zeros(3, 2).double()
    >>> add_class_sums(total, torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double(), torch.tensor([2, 2]))
    >>> total.tolist()
    [[0.0, 0.0], [0.0, 0.0], [4.0, 6.0]]
    """
    if x.is_cuda or len(x) * len(total) <= _FEW:  # on a GPU adding rows up gives other last digits every time
        total += (x.T @ one_hot(target, len(total))).T
    else:
        total.index_add_(0, target, x)


def fit_sums(blocks: Iterable[Weighted], classes: int) -> Fit:
    """The sums over blocks."""
    gram = total = torch.zeros(())
    weight = 0.0
    for number, (x, y, each) in enumerate(blocks):
        rows = x * each.unsqueeze(1)
        if not number:
            gram, total = x.new_zeros(x.shape[1], x.shape[1]), x.new_zeros(classes, x.shape[1])
        gram.addmm_(x.T, rows)
        add_class_sums(total, rows, y)
        weight += each.sum().item()
    return Fit(gram, total.T, weight)


def summed_holdout_errors(fit: Fit, held: Fit, strengths: Sequence[float]) -> Tensor:
    """Squared error of each strength on held-out rows, summed over rows and classes: [S] float64 on the CPU.

    With H = Vᵀ G_held V and T = Vᵀ C_held, |A D R - Y|² = Σ_jk d_j H_jk (R Rᵀ)_jk d_k - 2 Σ_j d_j (T ∘ R)_j + |Y|².
    """
    values, vectors = torch.linalg.eigh(fit.gram)
    values = values.clamp(min=0)
    right = vectors.T @ fit.cross
    square = (vectors.T @ held.gram @ vectors) * (right @ right.T)
    shared = ((vectors.T @ held.cross) * right).sum(1)
    errors = []
    for strength in strengths:
        scale = 1 / (values + strength)
        errors.append(scale @ square @ scale - 2 * scale @ shared + held.weight)
    return torch.stack(errors).cpu()


def summed_loo_errors(fit: Fit, blocks: Iterable[Weighted], single: Tensor, strengths: Sequence[float]) -> Tensor:
    """Squared leave-one-out error of each strength, summed over rows and classes: [S] float64 on the CPU.

    The residual of row i is (y_i - x_i W) / (1 - x_iᵀ (G + s I)^-1 x_i) (see ``loo_residuals``).

    Args:
        fit: sums over the blocks.
        blocks: the same rows once more, or some of them.
        single: bool [K], classes whose rows are left out of the error (not of the fit).
        strengths: S numbers > 0, ascending. One so small that a row fits itself, but for rounding, takes the error of
            the next.
    """
    values, vectors = torch.linalg.eigh(fit.gram)
    scales = [1 / (values.clamp(min=0) + strength) for strength in strengths]
    right = vectors.T @ fit.cross
    told = [True] * len(scales)
    wide = right.shape[1] > right.shape[0]
    square = right @ right.T if wide else None
    exactly = fit.weight <= len(values)  # residuals may be tiny then: of their squares by parts rounding would be left
    errors = torch.zeros(len(scales), dtype=fit.gram.dtype, device=fit.gram.device)
    for x, y, weight in blocks:
        rows = (x * weight.sqrt().unsqueeze(1)) @ vectors
        scored = ~single[y]
        own = right.T[y]  # what the row's own class gives
        for index, scale in enumerate(scales):
            scaled = rows * scale
            if exactly:
                residual = (one_hot(y, right.shape[1]) * weight.sqrt().unsqueeze(1) - scaled @ right).square().sum(1)
            else:
                said = (scaled * own).sum(1)
                size = ((scaled @ square) * scaled).sum(1) if square is not None else (scaled @ right).square().sum(1)
                residual = (size - 2 * weight.sqrt() * said + weight).clamp(min=0)
            left = 1 - (scaled * rows).sum(1)
            told[index] &= bool((left[scored] > _ROUNDING).all())
            errors[index] += (residual / left.square())[scored].sum()
    for index in reversed(range(len(scales) - 1)):
        if not told[index]:
            errors[index] = errors[index + 1]
    return errors.cpu()
