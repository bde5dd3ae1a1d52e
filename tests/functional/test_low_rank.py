from __future__ import annotations

import numpy as np
import pytest
import torch

from sapwood.functional import low_rank


def features(rng: torch.Generator) -> torch.Tensor:
    """200 rows with singular values of clearly different size."""
    left = torch.linalg.qr(torch.randn(200, 6, generator=rng, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(6, 6, generator=rng, dtype=torch.float64))[0]
    return left @ torch.diag(torch.tensor([9.0, 5, 3, 1, 0.5, 0.1], dtype=torch.float64)) @ right.T


def test_delta_is_the_dense_update(rng):
    x, A, B = (torch.randn(*shape, generator=rng) for shape in [(2, 7, 5), (3, 5), (4, 3)])
    dense = 0.5 * B.numpy() @ A.numpy()
    assert np.allclose(low_rank.compose(A, B, 0.5), dense, atol=1e-6)
    assert np.allclose(low_rank.lora_delta(x, A, B, 0.5), x.numpy() @ dense.T, atol=1e-5)


@pytest.mark.parametrize(("energy", "expected"), [(0.5, 1), (0.69, 1), (0.71, 2), (0.985, 3), (1.0, 6), (0.0, 0)])
def test_basis_holds_the_energy_asked_for(rng, energy, expected):
    x = features(rng)
    basis = low_rank.orthonormal_basis(x.T @ x, energy=energy)
    right = np.linalg.svd(x.numpy())[2][:expected].T
    assert basis.shape == (6, expected)
    assert np.allclose(basis @ basis.T, right @ right.T, atol=1e-8)  # signs are free, the projector is not


def test_rank_limits_and_roundoff_is_no_direction(rng):
    x = features(rng)[:, :4] @ torch.randn(4, 9, generator=rng, dtype=torch.float64)
    assert low_rank.orthonormal_basis(x.T @ x, energy=1.0).shape == (9, 4)
    assert low_rank.orthonormal_basis(x.T @ x, rank=2).shape == (9, 2)
    assert low_rank.orthonormal_basis(torch.zeros(3, 3)).shape == (3, 0)


def test_basis_grows_beyond_the_one_held(rng):
    old, x = features(rng), torch.randn(50, 6, generator=rng, dtype=torch.float64)
    held = low_rank.orthonormal_basis(old.T @ old, energy=0.9)
    more = low_rank.orthonormal_basis(x.T @ x, energy=0.8, basis=held)
    whole = torch.cat([held, more], 1)
    assert torch.allclose(whole.T @ whole, torch.eye(whole.shape[1], dtype=torch.float64), atol=1e-12)
    share = 1 - low_rank.project_out(x, whole).square().sum() / x.square().sum()
    without_last = 1 - low_rank.project_out(x, whole[:, :-1]).square().sum() / x.square().sum()
    assert without_last < 0.8 <= share
    leading = np.linalg.svd((x - x @ held @ held.T).numpy())[2][: more.shape[1]].T
    assert np.allclose(more @ more.T, leading @ leading.T, atol=1e-8)
    complete = low_rank.orthonormal_basis(torch.eye(6), basis=torch.eye(6))
    assert complete.shape == (6, 0)


def test_project_out_leaves_nothing_in_the_span(rng):
    basis = torch.linalg.qr(torch.randn(8, 3, generator=rng, dtype=torch.float64))[0]
    x = torch.randn(4, 8, generator=rng, dtype=torch.float64)
    rest = low_rank.project_out(x, basis)
    assert torch.allclose(rest @ basis, torch.zeros(4, 3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(low_rank.project_out(rest, basis), rest, atol=1e-12)
    assert torch.equal(low_rank.project_out(x, basis[:, :0]), x)


def test_energy_is_a_share():
    with pytest.raises(ValueError, match=r"0\.\.1, got 95"):
        low_rank.orthonormal_basis(torch.eye(2), energy=95)
