"""Low-rank updates of a weight, and orthonormal bases of the directions features take.

A weight W is [out, in]; its update is ``scale * B @ A`` with A [r, in] (down) and B [out, r] (up). Bases hold
orthonormal columns [d, m].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def lora_delta(x: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """What a low-rank pair adds to a linear layer's output: scale * (x A^T) B^T (Hu et al. 2021).

    Args:
        x: [..., in].
        A: [r, in].
        B: [out, r].
        scale: alpha / r.

    Returns:
        [..., out].
    """
    inner = F.linear(x, A)
    # The scale goes where it meets r numbers a token, not out.
    return F.linear(inner if scale == 1 else inner * scale, B)


def compose(A: Tensor, B: Tensor, scale: float) -> Tensor:
    """The dense update scale * B A [out, in] of a low-rank pair.

    >>> compose(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [0.0]]), 0.5).tolist()
    [[1.5, 3.0], [0.0, 0.0]]
    """
    return scale * (B @ A)


def project_out(x: Tensor, basis: Tensor) -> Tensor:
    """x without its part in the span of a basis: x - (x U) U^T.

    Args:
        x: [..., d].
        basis: U [d, m], orthonormal columns; m may be 0.

    >>> project_out(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0], [0.0]])).tolist()
    [[0.0, 4.0]]
    """
    return x - (x @ basis) @ basis.T


def orthonormal_basis(
    gram: Tensor, *, energy: float = 1.0, rank: int | None = None, basis: Tensor | None = None
) -> Tensor:
    """Leading directions of features from their Gram matrix, beyond those a basis already holds.

    Eigenvectors of Q G Q, Q = I - U U^T, by decreasing eigenvalue, until U and they together hold ``energy`` of
    trace(G) or there are ``rank`` of them. Directions whose eigenvalue is round-off are never taken.

    Args:
        gram: G = X^T X or its mean, [d, d].
        energy: share of the trace in 0..1.
        rank: most columns returned; None sets no limit.
        basis: U [d, m] held already; None for none.

    Returns:
        [d, k] float64 on G's device, orthonormal and orthogonal to ``basis``; k may be 0.

    >>> orthonormal_basis(torch.diag(torch.tensor([1.0, 8.0, 1.0])), energy=0.8).abs().tolist()
    [[0.0], [1.0], [0.0]]
    """
    if not 0 <= energy <= 1:
        raise ValueError(f"energy must lie in 0..1, got {energy}")
    gram = gram.detach().double()
    total = gram.diagonal().sum()
    rest = gram
    if basis is not None:
        basis = basis.detach().to(gram)
        rest = project_out(project_out(gram, basis).T, basis).T
    values, vectors = torch.linalg.eigh((rest + rest.T) / 2)
    values, vectors = values.flip(0), vectors.flip(1)
    floor = total * gram.shape[0] * torch.finfo(gram.dtype).eps
    held = total - rest.diagonal().sum()
    before = held + torch.cat([values.new_zeros(1), values.cumsum(0)[:-1]])
    # A direction is taken while those before it do not yet hold the energy asked for.
    taken = int(((before < energy * total - floor) & (values > floor)).sum())
    columns = vectors[:, : taken if rank is None else min(taken, rank)]
    if basis is None or columns.shape[1] == 0:
        return columns
    return torch.linalg.qr(project_out(columns.T, basis).T)[0]
