from __future__ import annotations

import numpy as np
import pytest
import torch

from sapwood.functional.moments import positive_part, taken_out


@pytest.fixture
def rows() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(12, 4, generator=generator, dtype=torch.float64) @ torch.randn(4, 4, generator=generator).double()
    )


def moments(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    values = rows.numpy()
    return torch.from_numpy(values.mean(0)), torch.from_numpy(np.cov(values.T) * (len(values) - 1)), len(values)


@pytest.mark.parametrize("number", [1, 5, 11])
def test_what_is_taken_out_was_never_there(rows: torch.Tensor, number: int) -> None:
    left = taken_out(*moments(rows), rows[:number], number)
    rest = rows[number:]
    centred = rest - rest.mean(0)
    assert left.count == 12 - number
    torch.testing.assert_close(left.mean, rest.mean(0))
    torch.testing.assert_close(left.scatter, centred.T @ centred, atol=1e-10, rtol=0)


def test_the_last_features_leave_nothing(rows: torch.Tensor) -> None:
    left = taken_out(*moments(rows), rows, 12)
    assert left.count == 0
    assert not left.mean.any()
    assert left.scatter.abs().max() < 1e-10


def test_some_may_stand_for_others(rows: torch.Tensor) -> None:
    """Six rows given, of which three are in the sums: their mean and half of their scatter go."""
    mean, scatter, count = moments(rows)
    left = taken_out(mean, scatter, count, rows[:6], 3)
    torch.testing.assert_close(left.mean, (mean * 12 - rows[:6].mean(0) * 3) / 9)
    assert left.count == 9
    same = taken_out(mean, scatter, count, rows[:6], 0)
    assert torch.equal(same.mean, mean)
    assert torch.equal(same.scatter, scatter)


def test_a_scatter_stays_one_whatever_is_taken_out(rows: torch.Tensor) -> None:
    left = taken_out(*moments(rows), 10 * rows[:4], 4)
    assert torch.linalg.eigvalsh(left.scatter).min() > -1e-9


def test_the_positive_part_is_the_nearest(rows: torch.Tensor) -> None:
    matrix = rows[:4] + rows[:4].T
    found = positive_part(matrix)
    values = torch.linalg.eigvalsh(matrix)
    assert values.min() < 0 < values.max()
    assert torch.linalg.eigvalsh(found).min() > -1e-10
    away = (found - matrix).norm().item()
    assert away == pytest.approx(values.clamp(max=0).norm().item())  # the least there is (Higham 1988)
    assert torch.equal(positive_part(found + torch.eye(4)), (found + found.T) / 2 + torch.eye(4))
