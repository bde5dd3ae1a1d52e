"""Maps of logits at the size of pictures, against interpolation written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sapwood.functional import resize
from sapwood.functional.resize import argmax_at_size, at_size


def bilinear(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[h, w] at ``size``, float64: pixel centres at (i + 1/2) / n, the border's value outside the outer centres."""

    def along(length: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        where = np.clip((np.arange(wanted) + 0.5) * length / wanted - 0.5, 0, None)
        low = np.minimum(np.floor(where).astype(int), length - 1)
        high = np.minimum(low + 1, length - 1)
        return low, high, where - low

    top, bottom, down = along(values.shape[0], size[0])
    left, right, across = along(values.shape[1], size[1])
    upper = values[top][:, left] * (1 - across) + values[top][:, right] * across
    lower = values[bottom][:, left] * (1 - across) + values[bottom][:, right] * across
    return upper * (1 - down[:, None]) + lower * down[:, None]


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("size", [(7, 11), (3, 4), (2, 9), (1, 1), (30, 5)])
def test_bilinear_as_written_out(size: tuple[int, int]) -> None:
    maps = logits(2, 3, 3, 4)
    found = at_size(maps, size)
    assert found.shape == (2, 3, *size)
    for picture in range(2):
        for channel in range(3):
            expected = bilinear(maps[picture, channel].numpy(), size)
            np.testing.assert_allclose(found[picture, channel].numpy(), expected, atol=1e-12)


def test_at_the_same_size_nothing_changes() -> None:
    maps = logits(1, 2, 3, 4)
    torch.testing.assert_close(at_size(maps, (3, 4)), maps, atol=0, rtol=0)


def test_gradients_spread_back() -> None:
    maps = logits(1, 2, 2, 3).requires_grad_()
    torch.autograd.gradcheck(lambda x: at_size(x, (5, 4)), maps)


@pytest.mark.parametrize("at_once", [1, 2 * 6 * 8 * 3, 2**26])
@pytest.mark.parametrize("size", [(6, 8), (3, 2)])
def test_the_best_channel_does_not_depend_on_how_many_are_looked_at(
    at_once: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = logits(2, 7, 3, 4, seed=1)
    expected = at_size(maps, size).argmax(1)
    monkeypatch.setattr(resize, "_AT_ONCE", at_once)
    assert torch.equal(argmax_at_size(maps, size), expected)
    assert len(expected.unique()) > 3  # else these maps could not tell


@pytest.mark.parametrize("at_once", [1, 2 * 6 * 8 * 3, 2**26])
def test_the_best_of_what_is_made_of_several_channels(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2 pictures with 6 channels, the last of which adds to the first."""

    def decide(values: Tensor) -> Tensor:
        chances = values.sigmoid()
        return torch.cat([chances[:, :1] + chances[:, -1:], chances[:, 1:-1]], 1)

    maps = logits(2, 6, 3, 4, seed=1)
    maps[:, [0, 5]] -= 0.5  # else the background took everything
    expected = decide(at_size(maps, (6, 8))).argmax(1)
    monkeypatch.setattr(resize, "_AT_ONCE", at_once)
    assert torch.equal(argmax_at_size(maps, (6, 8), decide), expected)
    assert expected.unique().tolist() == [0, 1, 2, 3, 4]
    assert not torch.equal(expected, argmax_at_size(maps, (6, 8)))


def test_of_equal_logits_the_first_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = torch.zeros(1, 5, 2, 2)
    maps[:, [2, 4]] = 1.0
    for at_once in (1, 2 * 2 * 3, 2**26):
        monkeypatch.setattr(resize, "_AT_ONCE", at_once)
        assert argmax_at_size(maps, (2, 2)).tolist() == [[[2, 2], [2, 2]]]


def test_no_channels_no_answer() -> None:
    with pytest.raises(ValueError, match="without channels"):
        argmax_at_size(torch.zeros(1, 0, 2, 2), (4, 4))
