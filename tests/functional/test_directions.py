"""Low-rank directions against dense weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sapwood.functional.directions import fit_on, pair_products, row_overlap, unit_pair


@pytest.mark.parametrize("norm", ["factors", "product"])
def test_a_direction_has_norm_one(norm: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    A, B = torch.randn(3, 5, generator=generator), torch.randn(4, 3, generator=generator)
    down, up, size = unit_pair(A, B, norm)
    torch.testing.assert_close(size.float() * up @ down, B @ A, atol=1e-5, rtol=0)
    direction = (up @ down).norm() if norm == "product" else up.norm() * down.norm()
    assert direction.item() == pytest.approx(1, abs=1e-6)
    nothing = unit_pair(A, torch.zeros(4, 3), norm)
    assert [part.any().item() for part in nothing] == [False, False, False]


def test_inner_products_and_fits_are_those_of_dense_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    A, B = torch.randn(6, 5, generator=generator), torch.randn(4, 6, generator=generator)
    groups = torch.tensor([0, 0, 1, 2, 2, 2])
    dense = np.stack([(B[:, groups == g].double() @ A[groups == g].double()).flatten().numpy() for g in range(3)])
    products = pair_products(A, B, groups)
    np.testing.assert_allclose(products.numpy(), dense @ dense.T, atol=1e-5)
    coefficients, residual = fit_on(products[:2, :2], products[:2, 2], products[2, 2])
    expected, *_ = np.linalg.lstsq(dense[:2].T, dense[2], rcond=None)
    np.testing.assert_allclose(coefficients.numpy(), expected, atol=1e-6)
    rest = dense[2] - expected @ dense[:2]
    assert residual == pytest.approx(np.linalg.norm(rest) / np.linalg.norm(dense[2]), rel=1e-6)


def test_overlap_of_rows_entry_by_entry() -> None:
    generator = torch.Generator().manual_seed(0)
    old, new = torch.randn(4, 5, generator=generator), torch.randn(2, 5, generator=generator)
    products = [float(np.dot(one, two)) for one in old.double().numpy() for two in new.double().numpy()]
    assert row_overlap(old, new).item() == pytest.approx(sum(map(abs, products)), rel=1e-5)
    assert row_overlap(old, new, "squared").item() == pytest.approx(sum(p**2 for p in products), rel=1e-5)
    assert row_overlap(old[:0], new).item() == 0
