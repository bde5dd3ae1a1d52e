"""Sums over features and what is solved from them: ridge regression, leave-one-out, drift, Gaussians, temperature.

Features are rows: x [n, d]. A linear map P [d, d] acts on a column, so rows are mapped by ``x @ P.T``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 2048
"""Rows that are looked at together where memory is not to grow with their number."""

_LOGITS = 2**18


def exact(x: Tensor) -> Tensor:
    """The tensor in float64, on its CUDA device or else on the CPU (Apple's GPUs have no float64)."""
    return x.detach().to(x.device if x.is_cuda else "cpu", torch.float64)


def one_hot(target: Tensor, classes: int) -> Tensor:
    """One-hot rows [n, classes] in float64 of class indices [n]."""
    return F.one_hot(target.long(), classes).double()


def class_means(x: Tensor, target: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mean of every class's rows, and how many there are.

    Args:
        x: [n, d] features.
        target: [n] int64, class indices below ``classes``.
        classes: K.

    Returns:
        (mean [K, d] float64, zero where a class has no row; count [K] int64).

    >>> mean, count = class_means(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 2]), 3)
    >>> mean.flatten().tolist(), count.tolist()
    ([2.0, 0.0, 5.0], [2, 0, 1])
    """
    rows = exact(x[:BLOCK])
    target = target.to(rows.device)
    count = torch.bincount(target, minlength=classes)
    total = torch.zeros(classes, x.shape[1], dtype=rows.dtype, device=rows.device)
    for start in range(0, len(x), BLOCK):
        total.index_add_(0, target[start : start + BLOCK], exact(x[start : start + BLOCK]))
    return total / count.clamp(min=1).unsqueeze(1), count


def pack_triangle(matrix: Tensor) -> Tensor:
    """Upper triangle [..., d(d+1)/2] of symmetric matrices [..., d, d], row by row; the dtype stays.

    >>> pack_triangle(torch.tensor([[1.0, 2.0], [2.0, 3.0]])).tolist()
    [1.0, 2.0, 3.0]
    """
    rows, columns = torch.triu_indices(matrix.shape[-1], matrix.shape[-1], device=matrix.device)
    return matrix[..., rows, columns]


def unpack_triangle(packed: Tensor) -> Tensor:
    """Symmetric matrices [..., d, d] of their upper triangles [..., d(d+1)/2]."""
    size = (math.isqrt(8 * packed.shape[-1] + 1) - 1) // 2
    if size * (size + 1) // 2 != packed.shape[-1]:
        raise ValueError(f"{packed.shape[-1]} numbers are not the triangle of a square matrix")
    rows, columns = torch.triu_indices(size, size, device=packed.device)
    matrix = packed.new_zeros(*packed.shape[:-1], size, size)
    matrix[..., rows, columns] = packed
    matrix[..., columns, rows] = packed
    return matrix


def ridge_solve(gram: Tensor, cross: Tensor, strength: float) -> Tensor:
    """Weights of ridge regression from its sums: (G + strength I)^-1 C.

    Solved by Cholesky in float64. Where G + strength I is singular in float64 (a strength of nearly zero), the
    directions without data get weight zero: the solution of least norm.

    Args:
        gram: G = X^T X, [d, d].
        cross: C = X^T Y, [d, K].
        strength: >= 0, in the units of G.

    Returns:
        [d, K] float64.

    >>> ridge_solve(torch.tensor([[3.0]]), torch.tensor([[8.0]]), 1.0).item()
    2.0
    """
    gram, cross = exact(gram), exact(cross)
    regular = gram.clone()
    regular.diagonal().add_(strength)
    factor, info = torch.linalg.cholesky_ex(regular)
    if info.item() == 0:
        solution = torch.cholesky_solve(cross, factor)
        if bool(torch.isfinite(solution).all()):
            return solution
    values, vectors = torch.linalg.eigh(gram)
    floor = values.abs().max() * gram.shape[0] * torch.finfo(gram.dtype).eps
    inverse = torch.where(values > floor, 1 / (values.clamp(min=0) + strength), 0)
    return vectors @ (inverse.unsqueeze(1) * (vectors.T @ cross))


def holdout_errors(x: Tensor, y: Tensor, x_held: Tensor, y_held: Tensor, strengths: Sequence[float]) -> Tensor:
    """Mean squared error on held-out rows of ridge regression fitted on (x, y), for every strength.

    One eigendecomposition of the smaller Gram matrix serves all strengths.

    Args:
        x: [n, d] features.
        y: [n, K] targets.
        x_held: [m, d].
        y_held: [m, K].
        strengths: S numbers > 0.

    Returns:
        [S] float64.
    """
    x, y, x_held, y_held = exact(x), exact(y), exact(x_held), exact(y_held)
    if x.shape[0] < x.shape[1]:
        values, vectors = torch.linalg.eigh(x @ x.T)
        left, right = x_held @ (x.T @ vectors), vectors.T @ y
    else:
        values, vectors = torch.linalg.eigh(x.T @ x)
        left, right = x_held @ vectors, vectors.T @ (x.T @ y)
    values = values.clamp(min=0).unsqueeze(1)
    errors = [(left @ (right / (values + strength)) - y_held).square().mean() for strength in strengths]
    return torch.stack(errors).cpu()


def loo_residuals(x: Tensor, y: Tensor, strengths: Sequence[float]) -> Iterator[Tensor]:
    """Leave-one-out residuals of ridge regression in closed form, for every strength.

    With K = X X^T, row i of the residual y_i - yhat_(-i) is [(K + s I)^-1 Y]_i / [(K + s I)^-1]_ii, as if n models
    had been fitted, each without one row (Rifkin and Lippert 2007).

    Args:
        x: [n, d] features, n >= 2.
        y: [n, K] targets.
        strengths: S numbers > 0.

    Returns:
        S tensors [n, K] float64, one at a time.

    >>> x = torch.tensor([[1.0], [2.0]]); y = torch.tensor([[1.0], [4.0]])
    >>> [round(v, 6) for v in next(loo_residuals(x, y, [1.0])).flatten().tolist()]  # 1 - 8/5 and 4 - 2 * 1/2
    [-0.6, 3.0]
    """
    x, y = exact(x), exact(y)
    left, singular, _ = torch.linalg.svd(x, full_matrices=False)
    coordinates = left.T @ y
    # strength * (K + strength I)^-1 = left diag(shrunk) left^T + (I - left left^T); the second term is exactly
    # zero when left is square, where computing it would drown the first in round-off.
    square = left.shape[0] == left.shape[1]
    outside = torch.zeros_like(y) if square else y - left @ coordinates
    outside_diagonal = torch.zeros_like(left[:, 0]) if square else (1 - left.square().sum(1)).clamp(min=0)
    for strength in strengths:
        shrunk = strength / (singular.square() + strength)
        numerator = left @ (shrunk.unsqueeze(1) * coordinates) + outside
        diagonal = left.square() @ shrunk + outside_diagonal
        yield numerator / diagonal.clamp(min=torch.finfo(x.dtype).tiny).unsqueeze(1)


def loo_errors(x: Tensor, y: Tensor, strengths: Sequence[float]) -> Tensor:
    """Mean squared leave-one-out error of ridge regression for every strength: [S] float64."""
    return torch.stack([residual.square().mean() for residual in loo_residuals(x, y, strengths)]).cpu()


def drift_map(before: Tensor, after: Tensor, strength: float) -> Tensor:
    """Linear map P from the features before a task to those after it: identity plus a ridge-fitted correction.

    P = I + D, where D minimises sum_i ||after_i - before_i - D before_i||^2 + s ||D||_F^2 and
    s = ``strength`` * trace(before^T before) / d. A large strength gives P = I: no drift assumed.

    Args:
        before: [n, d] features of the task's pictures before it was learned.
        after: [n, d] features of the same pictures, in the same order, afterwards.
        strength: > 0, relative to the mean diagonal entry of the Gram matrix.

    Returns:
        [d, d] float64 on the CPU; rows x are carried by ``x @ P.T``.

    >>> drift_map(torch.eye(2), 2 * torch.eye(2), 1e-9).round(decimals=6).tolist()
    [[2.0, 0.0], [0.0, 2.0]]
    """
    if before.shape != after.shape or len(before.shape) != 2:
        raise ValueError(f"features before {tuple(before.shape)} and after {tuple(after.shape)} must be equal [n, d]")
    gram = shift = torch.zeros((), dtype=torch.float64)
    for start in range(0, max(len(before), 1), BLOCK):
        old, new = exact(before[start : start + BLOCK]), exact(after[start : start + BLOCK])
        here, moved = old.T @ old, old.T @ (new - old)
        gram, shift = (gram + here, shift + moved) if start else (here, moved)
    scale = gram.diagonal().mean().item() or 1.0
    correction = ridge_solve(gram, shift, strength * scale)
    return (torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device) + correction.T).cpu()


def sample_gaussian(mean: Tensor, covariance: Tensor, count: int, ridge: float, generator: torch.Generator) -> Tensor:
    """Samples of a Gaussian whose covariance may be singular.

    ``ridge`` times the mean variance is added to the diagonal; a covariance of zeros gives the mean ``count`` times.

    Args:
        mean: [d].
        covariance: [d, d], symmetric, positive semi-definite up to round-off.
        count: number of samples.
        ridge: >= 0, relative to trace(covariance) / d.
        generator: on the CPU.

    Returns:
        [count, d] float64 on the CPU.
    """
    mean, covariance = exact(mean).cpu(), exact(covariance).cpu()
    noise = torch.randn(count, mean.shape[0], generator=generator, dtype=mean.dtype)
    variance = covariance.diagonal().mean().item()
    if variance <= 0:
        return mean.expand(count, -1).clone()
    regular = covariance.clone()
    regular.diagonal().add_(ridge * variance)
    factor, info = torch.linalg.cholesky_ex(regular)
    if info.item() != 0:
        values, vectors = torch.linalg.eigh(regular)
        factor = vectors * values.clamp(min=0).sqrt()
    return mean + noise @ factor.T


def fit_temperature(logits: Tensor, target: Tensor, earlier: int = 0) -> float | None:
    """Temperature T that minimises the negative log likelihood of softmax(logits / T).

    Targets are smoothed as in Platt (1999): the true class gets (n + 1) / (n + 2), so that a few pictures, all
    recognised, do not ask for T = 0; n counts ``earlier`` too. Found by golden section over T in 1e-4..1e4: the
    objective is convex in 1 / T. A class with the logit -inf is ruled out for that picture and takes no part; where
    that is the true one, no T mends it and the picture is left out.

    Args:
        logits: [n, K]; -inf for classes that are ruled out.
        target: [n] int64.
        earlier: pictures that told before, under other logits: the same doubt is spread over all of them.

    Returns:
        The temperature; None where nothing can be learnt (n = 0 or K < 2, or no picture has two classes left).
    """
    logits = exact(logits)
    target = target.to(logits.device).unsqueeze(1)
    true, left = logits.gather(1, target).squeeze(1), (logits > -math.inf).sum(1)
    useful = true > -math.inf
    rest = 1 / (earlier + int(useful.sum()) + 2)
    useful &= left > 1  # a class that is left alone is certain at any T
    if not useful.any():
        return None
    if not useful.all():
        logits, true, left = logits[useful], true[useful], left[useful]
    top, rows = logits.amax(1, keepdim=True), max(1, _LOGITS // logits.shape[1])
    parts = list(zip(logits.split(rows), top.split(rows), strict=True))  # so that nothing as large as all is made
    below = torch.cat([(part - high).where(part > -math.inf, 0.0).sum(1) for part, high in parts])
    true = true - top.squeeze(1)
    # A true class has the share 1 - rest, others rest / (left - 1): the loss is logsumexp(logits / T) - expected / T.
    expected = float(((1 - rest) * true + rest * (below - true) / (left - 1)).mean())

    def loss(log_temperature: float) -> float:
        temperature = math.exp(log_temperature)
        total = sum(float(torch.logsumexp((part - high) / temperature, dim=1).sum()) for part, high in parts)
        return total / len(logits) - expected / temperature

    ratio = (math.sqrt(5) - 1) / 2
    low, high = math.log(1e-4), math.log(1e4)
    inner, outer = high - ratio * (high - low), low + ratio * (high - low)
    at_inner, at_outer = loss(inner), loss(outer)
    for _ in range(60):
        if at_inner <= at_outer:
            high, outer, at_outer = outer, inner, at_inner
            inner = high - ratio * (high - low)
            at_inner = loss(inner)
        else:
            low, inner, at_inner = inner, outer, at_outer
            outer = low + ratio * (high - low)
            at_outer = loss(outer)
    return math.exp((low + high) / 2)
