"""Corruptions: what each does to pixels, against plain arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from sapwood.data.corruptions import BLUR_RADIUS, CONTRAST, CORRUPTIONS, NOISE


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 24, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_is_a_function_of_the_pixels(name: str, pixels: np.ndarray) -> None:
    before = pixels.copy()
    first = CORRUPTIONS[name](pixels)
    assert (first.dtype, first.shape) == (np.uint8, pixels.shape)
    assert np.array_equal(pixels, before)
    assert np.array_equal(CORRUPTIONS[name](np.asfortranarray(pixels)), first)
    assert np.array_equal(first, pixels) == (name == "clean")


def test_blur(pixels: np.ndarray) -> None:
    """A single bright point spreads with the variance of the blur, and no light is lost."""
    point = np.zeros((41, 41, 3), np.uint8)
    point[20, 20] = 255
    shape = CORRUPTIONS["blur"](point)[..., 0].astype(float)
    away = np.arange(41) - 20.0
    assert (away**2 * shape.sum(0)).sum() / shape.sum() == pytest.approx(BLUR_RADIUS**2, rel=0.15)
    assert shape.sum() == pytest.approx(255, rel=0.1)
    assert CORRUPTIONS["blur"](pixels).std() < pixels.std() / 2


def test_noise() -> None:
    grey = np.full((64, 64, 3), 128, np.uint8)
    added = CORRUPTIONS["noise"](grey).astype(float) - 128
    assert added.std() == pytest.approx(255 * NOISE, rel=0.03)
    assert abs(added.mean()) < 1
    channels = np.corrcoef(added.reshape(-1, 3).T)
    assert np.abs(channels - np.eye(3)).max() < 0.06
    other = CORRUPTIONS["noise"](grey + 1).astype(float) - 129
    assert abs(np.corrcoef(added.ravel(), other.ravel())[0, 1]) < 0.05


def test_contrast(pixels: np.ndarray) -> None:
    flat = CORRUPTIONS["contrast"](pixels).astype(float)
    mean = pixels.reshape(-1, 3).mean(0)
    assert np.abs(flat - (mean + CONTRAST * (pixels - mean))).max() <= 0.5 + 1e-9
    assert flat.std() == pytest.approx(CONTRAST * pixels.std(), rel=0.05)


def test_negative(pixels: np.ndarray) -> None:
    assert np.array_equal(CORRUPTIONS["negative"](pixels).astype(int) + pixels, np.full(pixels.shape, 255))
