"""Routes between shared factors: gradients derived by hand, and which directions are protected."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sapwood.functional.routes import protected_directions, route_overlap, routed_delta


def tensors(r: int = 3, d: int = 5, out: int = 4, n: int = 7) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, n, d), (r, d), (r, r), (r, r), (out, r), (2, n, out)]
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


@pytest.mark.parametrize("detach", [False, True])
def test_values_and_gradients_by_hand(detach: bool) -> None:
    x, down, old, delta, up, weights = tensors()
    leaves = [tensor.clone().requires_grad_() for tensor in (x, down, delta, up)]
    y = routed_delta(leaves[0], leaves[1], old, leaves[2], leaves[3], 1.5, detach_old=detach)
    (y * weights).sum().backward()
    flat = [tensor.flatten(0, 1).numpy() for tensor in (x, weights)]
    D, P, N, U = (tensor.numpy() for tensor in (down, old, delta, up))
    assert np.allclose(y.detach().flatten(0, 1), 1.5 * flat[0] @ (U @ (P + N) @ D).T)
    G = flat[1].T @ flat[0]  # dLoss/dW
    seen = N if detach else P + N  # the route that the shared factors learn through
    expected = {
        "x": 1.5 * flat[1] @ U @ (P + N) @ D,  # earlier layers see the whole change in any case
        "down": 1.5 * (U @ seen).T @ G,
        "delta": 1.5 * U.T @ G @ D.T,
        "up": 1.5 * G @ (seen @ D).T,
    }
    for leaf, gradient in zip(leaves, expected.values(), strict=True):
        assert np.allclose(leaf.grad.flatten(0, -2).numpy(), gradient)


def test_detaching_leaves_the_values_bit_for_bit() -> None:
    x, down, old, delta, up, _ = (tensor.float() for tensor in tensors())
    for dtype in (torch.float32, torch.bfloat16):
        one, two = (
            routed_delta(x.to(dtype), down, old, nn.Parameter(delta), up, 0.5, detach_old=d) for d in (False, True)
        )
        assert one.dtype == dtype
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("values", "energy", "count"),
    [
        ([4.0, 3.0, 2.0, 1.0], None, 2),
        ([4.0, 3.0, 1.0], None, 1),
        ([4.0], None, 1),
        ([4.0, 3.0, 2.0, 1.0], 0.9, 3),  # 16 + 9 of 30 are not enough
        ([9.0, 1.0, 1.0, 1.0], 0.9, 1),
        ([1.0, 1.0, 1.0, 1.0], 0.9, 3),  # all four would be needed; one stays free
        ([4.0], 0.9, 1),
    ],
)
def test_directions_that_are_protected(values: list[float], energy: float | None, count: int) -> None:
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.linalg.qr(torch.randn(len(values), len(values), generator=generator))[0] for _ in range(2))
    directions = protected_directions(left @ torch.diag(torch.tensor(values)) @ right, energy=energy)
    assert directions.shape == (len(values), count)
    if len(set(values)) == len(values):
        torch.testing.assert_close(directions @ directions.T, left[:, :count] @ left[:, :count].T, atol=1e-5, rtol=0)


def test_overlap_is_a_share() -> None:
    generator = torch.Generator().manual_seed(0)
    old, new = (torch.randn(4, 4, generator=generator) for _ in range(2))
    left = np.linalg.svd(old.numpy())[0][:, :2]
    expected = np.linalg.norm(left.T @ new.numpy()) / np.linalg.norm(new.numpy())
    assert route_overlap(protected_directions(old), new) == pytest.approx(expected, rel=1e-5)
    assert route_overlap(protected_directions(old), torch.zeros(4, 4)) == 0
