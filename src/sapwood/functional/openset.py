"""Is a picture like anything that was learned? Distances in feature space, and the limit that known pictures keep.

Everything follows from sums over features x [n, d] of classes y [n]: those of each class [K, d], counts [K], and the
Gram matrix sum x xᵀ [d, d]. Sums of several rounds, in any order, are those of all pictures at once; pictures can be
taken out again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sapwood.functional.statistics import BLOCK, exact

ACCEPTANCE = 0.95
"""Share of known pictures that the limit is meant to let in."""
LEAST = math.ceil(1 / (1 - ACCEPTANCE)) - 1
"""Held-out pictures without which no limit can be said to let that share in: 19."""


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over features, on one device.

    Attributes:
        total: [K, d] float64, of each class.
        count: [K] int64.
        gram: [d, d] float64.
    """

    total: Tensor
    count: Tensor
    gram: Tensor

    def without(self, x: Tensor, y: Tensor) -> Sums:
        """The sums of all features but these, [n, d] of classes [n]."""
        x, y = exact(x).to(self.gram.device), y.to(self.gram.device)
        total = self.total.index_add(0, y, x, alpha=-1)
        return Sums(total, self.count - torch.bincount(y, minlength=len(self.count)), self.gram - x.T @ x)


@dataclass(frozen=True)
class Gaussians:
    """One Gaussian a class that has pictures, with a covariance shared by all.

    Attributes:
        mean: [C, d] float64.
        factor: lower Cholesky factor [d, d] float64 of the covariance.
    """

    mean: Tensor
    factor: Tensor


def shrunk(covariance: Tensor, freedom: int) -> Tensor:
    """A covariance [d, d] drawn towards a multiple of the identity, so that it has an inverse.

    (1 - r) S + r trace(S)/d I with r of the oracle approximating shrinkage estimator (OAS; Chen, Wiesel, Eldar and
    Hero 2010, IEEE Trans. Signal Process. 58, eq. 23): r = ((1 - 2/d) tr(S²) + tr(S)²) / ((n + 1 - 2/d) (tr(S²) -
    tr(S)²/d)), at most 1. S of zeros gives the identity.

    Args:
        covariance: S.
        freedom: n, the number of independent rows behind it.

    >>> shrunk(torch.eye(2), 10).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    covariance = exact(covariance)
    size = covariance.shape[0]
    trace, square = covariance.trace(), covariance.square().sum()
    identity = torch.eye(size, dtype=covariance.dtype, device=covariance.device)
    if trace <= 0:
        return identity
    above = (1 - 2 / size) * square + trace**2
    below = (freedom + 1 - 2 / size) * (square - trace**2 / size)
    share = 1.0 if below <= above else (above / below).item()
    return (1 - share) * covariance + share * trace / size * identity


def within_covariance(sums: Sums) -> Tensor | None:
    """Covariance [d, d] within classes, (gram - sum_c n_c m_c m_cᵀ) / (N - C) over the C classes with pictures.

    None where no class has two pictures: then nothing is known of how pictures of a class differ.
    """
    present = sums.count > 0
    freedom = int(sums.count.sum() - present.sum())
    if freedom < 1:
        return None
    rows = sums.total[present]
    within = (sums.gram - rows.T @ (rows / sums.count[present].unsqueeze(1))) / freedom
    return (within + within.T) / 2


def shared_gaussians(sums: Sums) -> Gaussians | None:
    """Class means and the shared covariance within classes, ``shrunk``; None where no class has two pictures."""
    within = within_covariance(sums)
    if within is None:
        return None
    present = sums.count > 0
    number = sums.count[present]
    factor, info = torch.linalg.cholesky_ex(shrunk(within, int(number.sum()) - len(number)))
    return None if info.item() else Gaussians(sums.total[present] / number.unsqueeze(1), factor)


def held_of(sums: Sums, gone: Tensor) -> Tensor:
    """What the Gram matrix [d, d] holds of classes ``gone`` [C] bool, if they are spread as all are.

    Without it the matrix stays positive semidefinite, and the shared covariance of the others as it is.

    >>> line = Sums(torch.tensor([[2.0], [8.0]]).double(), torch.tensor([2, 2]), torch.tensor([[38.0]]).double())
    >>> held_of(line, torch.tensor([False, True])).item()  # 2 * 4², and one of the two degrees of freedom
    34.0
    """
    number, total = sums.count[gone].double()[:, None], sums.total[gone]
    held, alike = total.T @ (total / number), within_covariance(sums)
    return held if alike is None else held + alike * (number - 1).sum()


def nearest_distance(x: Tensor, gaussians: Gaussians) -> Tensor:
    """Squared Mahalanobis distance of features [n, d] to the nearest class: [n] float64.

    min_c (x - m_c)ᵀ S⁻¹ (x - m_c), the score of Lee, Lee, Lee and Shin (NeurIPS 2018) at the last layer, without its
    perturbation of the input. It needs no picture of nothing, and one class is enough.

    >>> line = Gaussians(torch.tensor([[0.0], [10.0]]).double(), torch.tensor([[2.0]]).double())
    >>> nearest_distance(torch.tensor([[4.0], [8.0]]), line).tolist()  # (4/2)² and (2/2)²
    [4.0, 1.0]
    """
    white = torch.linalg.solve_triangular(gaussians.factor, exact(x).to(gaussians.factor.device).T, upper=False).T
    centres = torch.linalg.solve_triangular(gaussians.factor, gaussians.mean.T, upper=False).T
    return torch.cdist(white, centres, compute_mode="donot_use_mm_for_euclid_dist").square().amin(1)


def limit_of(distances: Tensor, acceptance: float = ACCEPTANCE) -> float | None:
    """The distance up to which a picture counts as known.

    The ceil(acceptance (n + 1))-th smallest distance of n held-out known pictures: a further one that is exchangeable
    with them keeps the limit with probability >= acceptance (split conformal prediction; Vovk, Gammerman and Shafer
    2005).

    Returns:
        None where n is too small to promise that.

    >>> limit_of(torch.arange(1.0, 101.0)), limit_of(torch.arange(18.0))
    (96.0, None)
    """
    place = math.ceil(acceptance * (len(distances) + 1) - 1e-9)
    return None if place > len(distances) else float(distances.sort().values[place - 1])


def held_out_distances(
    sums: Sums, x: Tensor, y: Tensor, parts: Sequence[Tensor], most: int | None = None
) -> tuple[Tensor, Tensor]:
    """Distances of pictures to classes that were formed without them.

    Args:
        sums: of all pictures, these among them.
        x, y: features [n, d] and classes [n].
        parts: indices of pictures; those of one part are taken out together.
        most: pictures that are measured in all, spread evenly over all parts; None measures all.

    Returns:
        Distances [m] float64 on the CPU and the classes [m] of the pictures. Left out are pictures of which no other
        of their class remains, and parts that leave no class with two.
    """
    distances, labels = [torch.zeros(0, dtype=torch.float64)], [torch.zeros(0, dtype=torch.int64)]
    for part in parts:
        rest = sums
        for rows in part.split(BLOCK):
            rest = rest.without(x[rows], y[rows])
        if most is not None and len(part) * len(parts) > most:
            number = max(1, most // len(parts))
            part = part[torch.arange(number) * len(part) // number]
        part = part[rest.count.cpu()[y[part].cpu()] > 0]
        gaussians = shared_gaussians(rest)
        if gaussians is not None and len(part):
            distances.append(nearest_distance(x[part], gaussians).cpu())
            labels.append(y[part].cpu())
    return torch.cat(distances), torch.cat(labels)


def folds(y: Tensor, count: int) -> list[Tensor]:
    """Indices of pictures of classes [n] in ``count`` parts, each class spread over all of them.

    >>> [part.tolist() for part in folds(torch.tensor([0, 0, 0, 1]), 2)]
    [[0, 2], [1, 3]]
    """
    order = y.cpu().argsort(stable=True)
    return [order[start::count] for start in range(min(count, len(order)))]
