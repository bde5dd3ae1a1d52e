"""Domain shifts made from clean pixels: what another camera, another light or a bad sensor does to a picture."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageFilter

BLUR_RADIUS = 1.5
"""Standard deviation of the blur, in pixels."""
NOISE = 0.15
"""Standard deviation of the noise, as a share of the range of pixels."""
CONTRAST = 0.2
"""Share of each pixel's distance from the picture's mean that is left."""


def clean(pixels: np.ndarray) -> np.ndarray:
    """The pixels as they are."""
    return pixels


def blur(pixels: np.ndarray) -> np.ndarray:
    """Gaussian blur (Pillow's, by repeated box filters) with a standard deviation of ``BLUR_RADIUS`` pixels."""
    return np.array(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(BLUR_RADIUS)))


def noise(pixels: np.ndarray) -> np.ndarray:
    """Gaussian noise, independent in each channel; a function of the pixels alone, so that every run meets the same."""
    digest = hashlib.blake2b(np.ascontiguousarray(pixels).tobytes(), digest_size=8).digest()
    numbers = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))
    values = pixels + np.float32(255 * NOISE) * numbers.standard_normal(pixels.shape, np.float32)
    return np.rint(values.clip(0, 255)).astype(np.uint8)


def contrast(pixels: np.ndarray) -> np.ndarray:
    """All pixels drawn towards the picture's mean colour, from which ``CONTRAST`` of their distance is left."""
    means = pixels.mean((0, 1), dtype=np.float64)
    tables = np.rint(means[:, None] + CONTRAST * (np.arange(256) - means[:, None])).astype(np.uint8)
    return np.stack([table[pixels[..., channel]] for channel, table in enumerate(tables)], axis=-1)


def negative(pixels: np.ndarray) -> np.ndarray:
    """The photographic negative: light is dark, every colour its complement."""
    return 255 - pixels


CORRUPTIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = MappingProxyType(
    {"clean": clean, "blur": blur, "noise": noise, "contrast": contrast, "negative": negative}
)
"""Name to function of uint8 [H, W, 3], which it leaves alone, to uint8 [H, W, 3]; in the order of learning.

The kinds are those of Hendrycks and Dietterich (2019) but for the negative; the strengths are our own.
"""
