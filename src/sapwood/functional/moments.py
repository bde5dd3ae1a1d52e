"""Moments of features from which some are taken out again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sapwood.functional.statistics import exact


@dataclass(frozen=True, eq=False)
class Moments:
    """Of a class's features.

    Attributes:
        mean: [d] float64, zeros where there are none.
        scatter: [d, d] float64, sum of (x - mean)(x - mean)ᵀ, perhaps with that of other classes around their means.
        count: n.
    """

    mean: Tensor
    scatter: Tensor
    count: int


def taken_out(mean: Tensor, scatter: Tensor, count: int, x: Tensor, number: int) -> Moments:
    """The moments of a class without some of its features, the inverse of merging (Chan, Golub and LeVeque 1979).

    What is left is that of some features in any case: where ``x`` are not what the moments hold, directions in which
    more would be taken than there is keep no scatter (``positive_part``).

    Args:
        mean: [d].
        scatter: [d, d]; that of other classes around their own means may be added to it.
        count: n of the class.
        x: [k, d], k >= 1, rows that stand for those to be taken out.
        number: how many these are, at most n.

    >>> all_three = torch.tensor([[1.0], [2.0], [6.0]])
    >>> left = taken_out(torch.tensor([3.0]), torch.tensor([[14.0]]), 3, all_three[2:], 1)
    >>> left.mean.item(), left.scatter.item(), left.count
    (1.5, 0.5, 2)
    """
    mean, scatter, x = exact(mean), exact(scatter), exact(x)
    if number == 0:
        return Moments(mean, scatter, count)
    centre = x.mean(0)
    around = x - centre
    scatter = scatter - around.T @ around * (number / len(x))
    left = count - number
    if left == 0:
        return Moments(torch.zeros_like(mean), positive_part(scatter), 0)
    away = centre - mean
    scatter = scatter - torch.outer(away, away) * (number * count / left)
    return Moments(mean - away * (number / left), positive_part(scatter), left)


def positive_part(matrix: Tensor) -> Tensor:
    """The nearest positive semi-definite matrix [d, d] (in Frobenius norm) to a symmetric one (Higham 1988).

    >>> positive_part(torch.tensor([[2.0, 0.0], [0.0, -1.0]])).tolist()
    [[2.0, 0.0], [0.0, 0.0]]
    """
    matrix = (matrix + matrix.T) / 2
    values, vectors = torch.linalg.eigh(matrix)
    if bool((values >= 0).all()):
        return matrix
    return (vectors * values.clamp(min=0)) @ vectors.T
