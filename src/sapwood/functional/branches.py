"""Parallel convolution branches (RCIL): which one a channel takes, and the two as one convolution."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

GammaRule = Literal["batch_norm", "inplace_abn"]


class Branch(NamedTuple):
    """A convolution and the batch normalisation behind it, in evaluation mode.

    Attributes:
        weight: [out, in, k, k] of the convolution.
        bias: [out], or None.
        gamma: [out], scale of the normalisation.
        beta: [out], its shift.
        mean: [out], running mean.
        var: [out], running variance.
        eps: added to the variance.
    """

    weight: Tensor
    bias: Tensor | None
    gamma: Tensor
    beta: Tensor
    mean: Tensor
    var: Tensor
    eps: float = 1e-5


def merge_parallel_branches(
    first: Branch, second: Branch, *, gamma_rule: GammaRule = "batch_norm"
) -> tuple[Tensor, Tensor]:
    """One convolution that gives the mean of two convolutions with batch normalisation in evaluation mode.

    With G = gamma and s = sqrt(var + eps) a branch is the convolution with weight G/s * w and bias
    beta + G/s * (b - mean); merged are their halves' sums. The two must have the same stride, padding and dilation.
    Source: RCIL (Zhang et al., CVPR 2022, arXiv 2203.05402, eq. 2-4) and its code.

    Args:
        first: of any float type; the result has it.
        second: with weights of the same shape.
        gamma_rule: ``batch_norm``, G = gamma; ``inplace_abn``, G = |gamma| + eps, the rule of the normalisation layer
            that the official code uses.

    Returns:
        (weight [out, in, k, k], bias [out]).

    Raises:
        ValueError: weights of different shapes.

    >>> ones = torch.ones(1)
    >>> branch = Branch(torch.full((1, 1, 1, 1), 3.0), None, gamma=2 * ones, beta=ones, mean=ones, var=ones, eps=0.0)
    >>> weight, bias = merge_parallel_branches(branch, branch._replace(gamma=-4 * ones))
    >>> weight.item(), bias.item()  # (2 * 3 - 4 * 3) / 2 and 1 + (-2 + 4) / 2
    (-3.0, 2.0)
    """
    if first.weight.shape != second.weight.shape:
        raise ValueError(f"branches of {list(first.weight.shape)} and {list(second.weight.shape)} cannot merge")
    one_weight, one_bias = fold_batch_norm(first, gamma_rule=gamma_rule)
    other_weight, other_bias = fold_batch_norm(second, gamma_rule=gamma_rule)
    return (one_weight + other_weight) / 2, (one_bias + other_bias) / 2


def fold_batch_norm(branch: Branch, *, gamma_rule: GammaRule = "batch_norm") -> tuple[Tensor, Tensor]:
    """One convolution instead of a convolution and its batch normalisation in evaluation mode.

    Arguments and equations as in ``merge_parallel_branches``.

    Returns:
        (weight [out, in, k, k], bias [out]).
    """
    if gamma_rule not in ("batch_norm", "inplace_abn"):
        raise ValueError(f"gamma_rule must be batch_norm or inplace_abn, got {gamma_rule!r}")
    gamma = branch.gamma.abs() + branch.eps if gamma_rule == "inplace_abn" else branch.gamma
    scale = gamma / torch.sqrt(branch.var + branch.eps)
    bias = -branch.mean if branch.bias is None else branch.bias - branch.mean
    return branch.weight * scale.reshape(-1, 1, 1, 1), branch.beta + scale * bias


def branch_weights(draws: Tensor) -> tuple[Tensor, Tensor]:
    """What a training forward multiplies the two branches by before it takes their mean, channel by channel.

    With r uniform in [0, 1): (2, 0) where r < 0.33, (0, 2) where r < 0.66, else (1, 1). Source: RCIL's code; the
    paper (sec. 3.2) draws from the same three cases.

    Args:
        draws: r, [out], one for all pictures of a batch.

    Returns:
        Weights of the first and of the second branch, [out] each, of the type of ``draws``.

    >>> [weights.tolist() for weights in branch_weights(torch.tensor([0.1, 0.5, 0.9]))]
    [[2.0, 0.0, 1.0], [0.0, 2.0, 1.0]]
    """
    first = torch.where(draws < 0.33, 2.0, torch.where(draws < 0.66, 0.0, 1.0)).to(draws.dtype)
    return first, 2 - first
