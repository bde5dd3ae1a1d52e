"""Low-rank directions of a weight and how they lie to each other, without ever forming the dense weights.

A direction is ``B A`` with A [r, in] (down) and B [out, r] (up). Several are stacked: their A above each other, their B
beside each other, and ``groups`` says which inner index belongs to which.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sapwood.functional.statistics import exact


def row_overlap(old: Tensor, new: Tensor, entries: Literal["absolute", "squared"] = "absolute") -> Tensor:
    """How far the rows of new factors lie in those of old ones: sum |A_old A_newᵀ|, or of the squared entries.

    O-LoRA's orthogonality loss (Wang et al., EMNLP 2023): the official code sums absolute values, the text squares.

    Args:
        old: [R, in].
        new: [r, in].
        entries: what is summed.

    >>> old, new = torch.eye(2), torch.tensor([[3.0, -4.0]])
    >>> row_overlap(old, new).item(), row_overlap(old, new, "squared").item()
    (7.0, 25.0)
    """
    products = old @ new.T
    return (products.abs() if entries == "absolute" else products.square()).sum()


def pair_products(down: Tensor, up: Tensor, groups: Tensor) -> Tensor:
    """Inner products <B_k A_k, B_l A_l> of stacked directions; the diagonal holds squared Frobenius norms.

    Args:
        down: [R, in].
        up: [out, R].
        groups: [R] int64, the direction that each inner index belongs to, counted from 0 without gaps.

    Returns:
        [T, T] float64.

    >>> down, up = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[2.0, 3.0]])
    >>> pair_products(down, up, torch.tensor([0, 1])).tolist()
    [[4.0, 6.0], [6.0, 18.0]]
    """
    down, up = exact(down), exact(up)
    member = F.one_hot(groups).to(down)
    return member.T @ ((down @ down.T) * (up.T @ up)) @ member


def unit_pair(
    down: Tensor, up: Tensor, norm: Literal["factors", "product"] = "factors"
) -> tuple[Tensor, Tensor, Tensor]:
    """A pair as direction and size: A / ||A||, the rest of the scaling in B, and the norm taken out.

    Args:
        down: A [r, in].
        up: B [out, r].
        norm: ||A||_F ||B||_F (``factors``) or ||B A||_F (``product``).

    Returns:
        (A', B', size) with B A = size * B' A'; zeros where B A is nothing. ``size`` is a float64 scalar.

    >>> down, up = torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0]])
    >>> unit_pair(down, up)[2].item(), unit_pair(down, up)[1].item()
    (10.0, 1.0)
    """
    A, B = exact(down), exact(up)
    width = A.norm()
    size = width * B.norm()
    if norm == "product":
        size = pair_products(A, B, torch.zeros(len(A), dtype=torch.int64, device=A.device))[0, 0].clamp(min=0).sqrt()
    if not size > 0:
        return torch.zeros_like(down), torch.zeros_like(up), torch.zeros_like(size)
    return (A / width).to(down), (B * (width / size)).to(up), size


def fit_on(products: Tensor, cross: Tensor, energy: Tensor) -> tuple[Tensor, float]:
    """Least-squares coefficients of a vector on others, from inner products alone.

    Args:
        products: [T, T] of the others among each other.
        cross: [T] of the others with the vector.
        energy: [] squared norm of the vector.

    Returns:
        (coefficients [T] float64, ||residual|| / ||vector||); the shortest coefficients where several fit, and a
        residual of 0 for a vector of zeros.

    >>> coefficients, residual = fit_on(torch.eye(2), torch.tensor([3.0, 0.0]), torch.tensor(25.0))
    >>> coefficients.tolist(), round(residual, 6)
    ([3.0, 0.0], 0.8)
    """
    products, cross, energy = products.double(), cross.double(), energy.double()
    coefficients = torch.linalg.pinv(products, hermitian=True) @ cross
    rest = energy - 2 * cross @ coefficients + coefficients @ products @ coefficients
    residual = (rest.clamp(min=0) / energy).sqrt().item() if energy > 0 else 0.0
    return coefficients, residual
