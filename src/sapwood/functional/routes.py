"""Routing matrices between a shared pair of low-rank factors (C-LoRA, arXiv 2502.17920).

The update of a weight is ``scale * U R D`` with D [r, in] (down), U [out, r] (up) and R [r, r] (the route), whose old
part is frozen and whose new part, the delta, learns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def routed_delta(
    x: Tensor, down: Tensor, old: Tensor, delta: Tensor, up: Tensor, scale: float, *, detach_old: bool = False
) -> Tensor:
    """What a routed pair adds to a linear layer's output: scale * U (R_old + R_delta) D x.

    Args:
        x: [..., in]; the factors are cast to its dtype.
        down: D [r, in].
        old: R_old [r, r], without gradient.
        delta: R_delta [r, r].
        up: U [out, r].
        scale: alpha / r.
        detach_old: D and U get no gradient through R_old. The values are the same, bit for bit.

    Returns:
        [..., out].
    """
    # The route meets D once a forward and not every token.
    if not detach_old:
        inner = F.linear(x, (scale * (old + delta) @ down).to(x.dtype))
        return F.linear(inner, up.to(x.dtype))
    # The second term is zero and carries D's gradient, which goes through the delta alone.
    whole = scale * (old + delta) @ down.detach() + scale * delta.detach() @ (down - down.detach())
    seen = F.linear(x.detach(), (scale * delta @ down).detach().to(x.dtype)) if torch.is_grad_enabled() else x
    return _Up.apply(F.linear(x, whole.to(x.dtype)), up.to(x.dtype), seen)


class _Up(torch.autograd.Function):
    """inner Uᵀ, whose gradient for U is as if the inner features had been ``seen``."""

    @staticmethod
    def forward(ctx: Any, inner: Tensor, up: Tensor, seen: Tensor) -> Tensor:
        ctx.save_for_backward(up, seen)
        return F.linear(inner, up)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        up, seen = ctx.saved_tensors
        return gradient @ up, gradient.flatten(0, -2).T @ seen.flatten(0, -2), None


def protected_directions(route: Tensor, *, energy: float | None = None) -> Tensor:
    """Leading left singular vectors U_k of a route, fewer than r of them where r > 1.

    k = r leaves no free direction: a penalty on U_kᵀ R would be one on R.

    Args:
        route: [r, r].
        energy: the fewest that hold this share of the squared singular values, between 1 and r - 1; None takes half.

    Returns:
        [r, k], orthonormal columns, in the route's dtype; computed in float64 on the CPU.

    >>> protected_directions(torch.diag(torch.tensor([1.0, 3.0]))).abs().tolist()
    [[0.0], [1.0]]
    """
    left, values, _ = torch.linalg.svd(route.detach().cpu().double())
    rank = len(values)
    count = rank // 2
    if energy is not None:
        held = values.square().cumsum(0)
        count = 1 + int((held < energy * held[-1]).sum())
    return left[:, : max(1, min(count, rank - 1))].to(route)


def route_overlap(protected: Tensor, delta: Tensor) -> float:
    """||U_kᵀ R_delta|| / ||R_delta||: the share of a new route that runs in old directions, 0..1; 0 for no route.

    >>> route_overlap(torch.tensor([[1.0], [0.0]]), torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    0.6
    """
    size = delta.double().norm().item()
    return (protected.double().T @ delta.double()).norm().item() / size if size else 0.0
