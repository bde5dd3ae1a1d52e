"""Low-rank updates of a weight, and orthonormal bases of the directions features take.

A weight W is [out, in]; its update is ``scale * B @ A`` with A [r, in] (down) and B [out, r] (up); that of a
convolution is the same for W as [out, in * kh * kw]. Bases hold
orthonormal columns [d, m]. Gradient projection memories (GPM) keep bases of what earlier rounds' features span.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

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


def conv_lora_delta(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    scale: float,
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Tensor:
    """What a low-rank pair adds to a convolution's output: the layer's own convolution to rank r, then a 1x1.

    The same as convolving with ``compose(A, B, scale)``; PEFT's LoRA on ``Conv2d``.

    Args:
        x: [batch, in, h, w].
        A: [r, in, kh, kw].
        B: [out, r, 1, 1].
        scale: alpha / r.
        stride, padding, dilation: of the layer, (down, across).

    Returns:
        [batch, out, h', w'], in the size of the layer's output.
    """
    inner = F.conv2d(x, A, None, tuple(stride), tuple(padding), tuple(dilation))
    return F.conv2d(inner if scale == 1 else inner * scale, B)


def compose(A: Tensor, B: Tensor, scale: float) -> Tensor:
    """The dense update scale * B A of a low-rank pair, in the shape of the weight.

    Args:
        A: [r, in], of a convolution [r, in, kh, kw].
        B: [out, r], of a convolution [out, r, 1, 1].
        scale: alpha / r.

    Returns:
        [out, in] or [out, in, kh, kw].

    >>> compose(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [0.0]]), 0.5).tolist()
    [[1.5, 3.0], [0.0, 0.0]]
    """
    return scale * (B.flatten(1) @ A.flatten(1)).unflatten(1, A.shape[1:])


def widened(A: Tensor, B: Tensor, multiple: int) -> tuple[Tensor, Tensor]:
    """A pair whose product is the same, at an inner width that is a multiple: zero rows of A, zero columns of B.

    Args:
        A: [r, in].
        B: [out, r].
        multiple: >= 1.

    Returns:
        (A [r', in], B [out, r']); gradients reach the r that were given.

    >>> A, B = widened(torch.ones(3, 5), torch.ones(7, 3), 4)
    >>> A.shape, B.shape, A[3].any().item()
    (torch.Size([4, 5]), torch.Size([7, 4]), False)
    """
    missing = -len(A) % multiple
    return (F.pad(A, (0, 0, 0, missing)), F.pad(B, (0, missing))) if missing else (A, B)


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
    values, vectors = _eigen(rest)
    floor = _floor(gram)
    held = total - rest.diagonal().sum()
    before = held + torch.cat([values.new_zeros(1), values.cumsum(0)[:-1]])
    # A direction is taken while those before it do not yet hold the energy asked for.
    taken = int(((before < energy * total - floor) & (values > floor)).sum())
    columns = vectors[:, : taken if rank is None else min(taken, rank)]
    if basis is None or columns.shape[1] == 0:
        return columns
    return torch.linalg.qr(project_out(columns.T, basis).T)[0]


class Bases(NamedTuple):
    """Directions of a layer's input that later updates must leave alone, in at most d / 2 columns.

    DualGPM (Liang and Li, CVPR 2023; InfLoRA, CVPR 2024): while few directions are protected their span is kept, once
    they are more than half of all, that of the others.

    Attributes:
        vectors: M [d, k] float64, orthonormal columns.
        kind: ``remove``: M spans what is protected; ``retain``: M spans what is still free.
    """

    vectors: Tensor
    kind: Literal["remove", "retain"] = "remove"


GpmEnergy = Literal["moment", "feature"]
"""What a direction weighs: squared singular values of the second moment, or of the features themselves."""


def gpm_update(bases: Bases | None, second_moment: Tensor, threshold: float, *, energy: GpmEnergy = "moment") -> Bases:
    """Protect the directions that hold ``threshold`` of the energy of a round's features (DualGPM).

    The same as ``protect(bases, gpm_directions(...))``.

    >>> bases = gpm_update(None, torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0])), 0.95)
    >>> bases.kind, bases.vectors.shape[1], gpm_update(bases, torch.eye(4), 0.7).kind
    ('remove', 2, 'retain')
    """
    return protect(bases, gpm_directions(bases, second_moment, threshold, energy=energy))


def gpm_directions(
    bases: Bases | None, second_moment: Tensor, threshold: float, *, energy: GpmEnergy = "moment"
) -> Tensor:
    """What a round adds to the protected directions.

    Of the first round, the leading ones whose energies together stay below ``threshold`` of all, at least one. Later,
    those needed for the protected to hold ``threshold`` of the round's energy; where the free ones are kept, those
    that go while the free still hold 1 - ``threshold`` of it.

    Args:
        bases: what is protected already; None before the first round.
        second_moment: C = mean of x xᵀ [d, d].
        threshold: share of the energy in 0..1.
        energy: ``moment``: squared singular values of C without its protected part, as InfLoRA's code has it;
            ``feature``: those of the features, which are the singular values of C in the first round.

    Returns:
        [d, q] float64, orthonormal, and free so far; q may be 0.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in 0..1, got {threshold}")
    moment = second_moment.detach().double()
    gram = moment @ moment.T if energy == "moment" else moment
    total = gram.diagonal().sum()
    floor = _floor(gram)
    if bases is None:
        values, vectors = _eigen(gram)
        taken = int((values.cumsum(0) < threshold * total - floor).sum())
        return vectors[:, : max(taken, int(total > 0))]
    held = bases.vectors.to(gram)
    if bases.kind == "remove":
        return orthonormal_basis(gram, energy=threshold, basis=held)
    values, vectors = _eigen(held.T @ gram @ held)
    free = values.sum() - torch.cat([values.new_zeros(1), values.cumsum(0)])[:-1]
    taken = int(((free >= (1 - threshold) * total) & (values > floor)).sum())
    return held @ vectors[:, :taken]


def protect(bases: Bases | None, directions: Tensor) -> Bases:
    """The bases with more directions protected; from the span to its complement once that takes fewer columns.

    Args:
        bases: None for none yet.
        directions: [d, q] orthonormal, outside what ``bases`` protects.
    """
    directions = directions.double()
    if bases is None:
        bases = Bases(directions[:, :0])
    held = bases.vectors
    if bases.kind == "retain":
        return Bases(held @ _complement(held.T @ directions), "retain")
    vectors = torch.cat([held, directions], 1)
    if 2 * vectors.shape[1] > vectors.shape[0]:
        return Bases(_complement(vectors).clone(), "retain")  # a slice would keep the whole square alive
    return Bases(vectors)


def free_directions(bases: Bases | None, second_moment: Tensor, rank: int) -> Tensor:
    """Leading left singular vectors of what a second moment C [d, d] has outside the protected: of C - P C.

    Returns:
        [d, k] float64, orthonormal; k <= ``rank`` is smaller where there are not as many.
    """
    moment = second_moment.detach().double()
    gram = moment @ moment.T  # its eigenvectors are the singular vectors, its eigenvalues their squared values
    if bases is None or bases.kind == "remove":
        return orthonormal_basis(gram, rank=rank, basis=None if bases is None else bases.vectors)
    held = bases.vectors.to(gram)
    return held @ orthonormal_basis(held.T @ gram @ held, rank=rank)


def _eigen(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, largest first, and eigenvectors."""
    values, vectors = torch.linalg.eigh((symmetric + symmetric.T) / 2)
    return values.flip(0), vectors.flip(1)


def _floor(gram: Tensor) -> Tensor:
    """What round-off alone may make of an eigenvalue."""
    return gram.diagonal().sum() * gram.shape[0] * torch.finfo(gram.dtype).eps


def _complement(columns: Tensor) -> Tensor:
    """An orthonormal basis of all that is orthogonal to k independent columns: [d, k] to [d, d - k]."""
    return torch.linalg.qr(columns, mode="complete")[0][:, columns.shape[1] :]
