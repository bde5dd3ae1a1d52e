"""Rare classes count as much as common ones: weights of pictures, and ridge sums as if classes were of one size."""

from __future__ import annotations

import torch
from torch import Tensor

from sapwood.functional.statistics import exact


def balancing_weights(target: Tensor) -> Tensor:
    """Weight of each picture so that all classes weigh the same: N / (C n_c), which is N in all.

    Args:
        target: [N] int64, class indices; C of them are different.

    Returns:
        [N] float64.

    >>> balancing_weights(torch.tensor([5, 5, 5, 9])).tolist()
    [0.6666666666666666, 0.6666666666666666, 0.6666666666666666, 2.0]
    """
    _, place, count = torch.unique(target, return_inverse=True, return_counts=True)
    return (len(target) / (len(count) * count.double()))[place]


def balanced_sums(gram: Tensor, cross: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of ridge regression as they would be if every class had as many pictures as the mean class.

    A Gram matrix is that within classes and that of their means, G = S + sum_c n_c m_c m_cᵀ. With the covariance
    within classes taken to be the same for all, the assumption of linear discriminant analysis with equal priors
    (Hastie, Tibshirani and Friedman 2009, section 4.3), classes of n pictures each have S + n sum_c m_c m_cᵀ, and the
    cross term n m_c. That is a function of the sums alone: rounds in any order and pictures taken out again give what
    all at once would have given, and nothing more is kept. Classes of one size already are left as they are.

    Args:
        gram: G = sum h hᵀ, [M, M].
        cross: sum of h of each class, [M, K].
        count: n_c, [K] int64; classes without pictures take no part.

    Returns:
        (G, C) of [M, M] and [M, K] float64.

    >>> gram, cross = balanced_sums(torch.tensor([[10.0]]), torch.tensor([[3.0, 1.0]]), torch.tensor([3, 1]))
    >>> gram.tolist(), cross.tolist()  # means 1 and 1, so that 6 of the 10 lie within; then two classes of 2
    ([[10.0]], [[2.0, 2.0]])
    """
    gram, cross, count = exact(gram), exact(cross), count.to(gram.device)
    present = count > 0
    sizes = count[present].double()
    if len(sizes) < 2 or bool((sizes == sizes[0]).all()):
        return gram, cross
    size = sizes.mean()
    rows = cross[:, present]
    shares = size / sizes  # so many pictures of the balanced sums stand for one
    # n m mᵀ - n_c m mᵀ of each class, added up in one product
    gram = gram + (rows * ((shares - 1) / sizes)) @ rows.T
    balanced = torch.zeros_like(cross)
    balanced[:, present] = rows * shares
    return (gram + gram.T) / 2, balanced
