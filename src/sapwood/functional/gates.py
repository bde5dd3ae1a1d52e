"""Subspaces that belong to tasks: the directions a task adds, how much of a feature lies in them, whose it may be.

Bases hold orthonormal columns [d, m], the directions of one task after those of another.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sapwood.functional.low_rank import orthonormal_basis

# Below this share of the trace a direction is taken for round-off of float32 features.
_SMALLEST_SHARE = 1e-10


def new_directions(moment: Tensor, held: Tensor, energy: float, least: int = 1) -> Tensor:
    """Directions that a task adds to those held, until both hold ``energy`` of its features (GPM, Saha et al. 2021).

    Args:
        moment: mean of z zᵀ over its features, [d, d], not centred.
        held: orthonormal columns [d, m] of earlier tasks; m may be 0.
        energy: share of the trace in 0..1.
        least: so many directions are taken even where the energy is held already, if there are any.

    Returns:
        [d, k] float64, orthonormal and orthogonal to ``held``; k may be 0.

    >>> moment = torch.diag(torch.tensor([8.0, 1.0, 1.0]))
    >>> held = torch.eye(3)[:, :1]
    >>> new_directions(moment, held, energy=0.8).shape, new_directions(moment, held, energy=0.8, least=0).shape
    (torch.Size([3, 1]), torch.Size([3, 0]))
    """
    found = orthonormal_basis(moment, energy=energy, basis=held)
    if found.shape[1] >= least:
        return found
    more = orthonormal_basis(moment, rank=least, basis=held)
    shares = (more * (moment.to(more) @ more)).sum(0) / moment.diagonal().sum().to(more)
    return more[:, shares > _SMALLEST_SHARE]


def mean_share(unit_moment: Tensor, basis: Tensor) -> Tensor:
    """Mean of ||Uᵀz||² / ||z||² over features z: the trace of Uᵀ M U, M the mean of z zᵀ / ||z||².

    Args:
        unit_moment: M, [d, d].
        basis: U, [d, k].

    Returns:
        A scalar in 0..1; 0 for k = 0.
    """
    return (basis * (unit_moment @ basis)).sum()


def energy_ratios(z: Tensor, basis: Tensor, weights: Tensor) -> Tensor:
    """How much of each feature lies in the subspace of each task: sum_c w_ct (u_cᵀz)² / ||z||².

    Args:
        z: [B, d].
        basis: the directions of all tasks, [d, m].
        weights: [m, T]; one divided by the task's mean share where the direction is the task's, else zero, so that 1
            is what its own features have on average.

    Returns:
        [B, T]; 0 for z = 0.

    >>> energy_ratios(torch.tensor([[3.0, 4.0]]), torch.eye(2), torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    tensor([[0.7200, 0.6400]])
    """
    norm = z.square().sum(-1, keepdim=True).clamp(min=torch.finfo(z.dtype).tiny)
    return ((z @ basis).square() / norm) @ weights


def task_offsets(scores: Tensor, members: Tensor, *, sharpness: float, weight: float, confidence: float) -> Tensor:
    """What a guess of the task adds to the logits of its classes: weight * log p, where it is confident.

    p = softmax(sharpness * scores). A class of several tasks takes the best of their log p; one of none stays. A
    picture whose largest p lies below ``confidence`` stays as it is.

    Args:
        scores: [B, T].
        members: bool [T, K], which classes each task taught.

    Returns:
        [B, K], at most 0.
    """
    log_p = torch.log_softmax(sharpness * scores, dim=1)
    best = log_p[:, :, None].masked_fill(~members, -torch.inf).amax(1)
    offsets = weight * best.masked_fill(~members.any(0), 0.0)
    confident = log_p.amax(1, keepdim=True).exp() >= confidence
    return torch.where(confident, offsets, torch.zeros_like(offsets))
