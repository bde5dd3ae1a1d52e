"""Changes of weights as low-rank pairs: exact sums, ranks that are those of the change, shapes of convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sapwood.functional.factorise import concatenate, factor_error, fuse, numerical_factors


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pair(rank: int, inputs: int, outputs: int, seed: int) -> tuple[Tensor, Tensor]:
    return drawn(rank, inputs, seed=seed), drawn(outputs, rank, seed=seed + 100)


def test_concatenated_pairs_are_the_sum_of_the_products() -> None:
    pairs = [pair(2, 7, 5, 0), pair(3, 7, 5, 1), pair(1, 7, 5, 2)]
    down, up = concatenate(pairs)
    assert (down.shape, up.shape) == ((6, 7), (5, 6))
    torch.testing.assert_close(up @ down, sum(B @ A for A, B in pairs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("zero", [0, 1], ids=["down", "up"])
def test_pairs_that_are_nothing_take_no_rank(zero: int) -> None:
    one, other = pair(2, 7, 5, 0), list(pair(3, 7, 5, 1))
    other[zero] = torch.zeros_like(other[zero])
    down, up = concatenate([(other[0], other[1]), one])
    assert torch.equal(down, one[0])
    assert torch.equal(up, one[1])
    down, up = concatenate([(other[0], other[1])])
    assert (down.shape, up.shape) == ((0, 7), (5, 0))


def test_numerical_rank_is_that_of_the_sum_in_float32() -> None:
    """Ten summed products of rank 3, each rounded to float32: the noise of the sum must not count as rank."""
    change = torch.zeros(96, 64)
    for seed in range(10):
        down, up = pair(3, 64, 96, seed)
        change += up @ down
    down, up = numerical_factors(change)
    assert down.shape == (30, 64)
    assert up.shape == (96, 30)
    assert factor_error(change, (down, up)) < 1e-6 * change.abs().max() * 30
    balanced = down.square().sum(1) / up.square().sum(0)
    torch.testing.assert_close(balanced, torch.ones(30), atol=1e-4, rtol=0)


def test_a_change_of_full_rank_is_held_by_as_many_factors() -> None:
    change = drawn(6, 9)
    down, up = numerical_factors(change)
    assert down.shape == (6, 9)
    assert factor_error(change, (down, up)) < 1e-6


def test_error_is_the_largest_entry_that_is_missing() -> None:
    change = torch.diag(torch.tensor([4.0, 0.5, 0.0]))
    down, up = numerical_factors(change)
    assert len(down) == 2
    assert factor_error(change, (down[:1], up[:, :1])) == pytest.approx(0.5)
    assert factor_error(change, (down[:0], up[:, :0])) == pytest.approx(4.0)


def test_zeros_have_rank_zero() -> None:
    down, up = numerical_factors(torch.zeros(4, 3))
    assert (down.shape, up.shape) == ((0, 3), (4, 0))


def test_a_convolution_keeps_its_kernel_in_the_first_factor() -> None:
    """Applied one after the other, as PEFT does it, the factors are the convolution with the whole change."""
    down, up = drawn(2, 3, 3, 3, seed=1), drawn(5, 2, seed=2)
    change = (up @ down.flatten(1)).unflatten(1, (3, 3, 3))
    down, up = numerical_factors(change)
    assert (down.shape, up.shape) == ((2, 3, 3, 3), (5, 2, 1, 1))
    x = drawn(2, 3, 8, 8, seed=3)
    inner = torch.nn.functional.conv2d(x, down, stride=2, padding=1)
    expected = torch.nn.functional.conv2d(x, change, stride=2, padding=1)
    torch.testing.assert_close(torch.nn.functional.conv2d(inner, up), expected, atol=1e-5, rtol=0)


def test_parts_of_a_fused_projection_change_their_own_rows() -> None:
    query, value = pair(2, 6, 4, 0), pair(3, 6, 4, 1)
    down, up = fuse([(query, (0, 4)), (value, (8, 12))], 12)
    change = up @ down
    assert len(down) == 5
    torch.testing.assert_close(change[:4], query[1] @ query[0], atol=1e-6, rtol=0)
    assert not change[4:8].any()
    torch.testing.assert_close(change[8:], value[1] @ value[0], atol=1e-6, rtol=0)
