"""Small pictures of ants (dark red), bees (yellow) and cats (blue) that any backbone tells apart."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

COLOURS = {"ant": (120, 20, 30), "bee": (240, 200, 40), "cat": (40, 60, 220), "ground": (128, 128, 128)}


def pixels(name: str, index: int = 0, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    """Picture ``index`` of a class, uint8 [H, W, 3]: its colour, shaded and noisy."""
    random = np.random.default_rng([index, *name.encode()])
    shade = np.linspace(random.uniform(0.7, 0.9), 1, size[1])[None, :, None]
    found = np.array(COLOURS[name]) * shade + random.normal(0, 8, (*size, 3))
    return found.clip(0, 255).round().astype(np.uint8)


def scene(index: int, size: tuple[int, int] = (28, 42)) -> tuple[np.ndarray, np.ndarray]:
    """A picture with an ant (value 1) on the left, a bee (2) on the right and ground between; and its mask."""
    third = size[1] // 3
    image, mask = pixels("ground", index, size), np.zeros(size, np.uint8)
    image[:, :third], mask[:, :third] = pixels("ant", index, size)[:, :third], 1
    image[:, -third:], mask[:, -third:] = pixels("bee", index, size)[:, -third:], 2
    return image, mask


def encoded(image: np.ndarray, format: str = "PNG") -> bytes:
    """Bytes of a file."""
    stored = io.BytesIO()
    Image.fromarray(image).save(stored, format=format)
    return stored.getvalue()


def picture(name: str, index: int = 20, side: int = 40) -> bytes:
    """A PNG file of a class; not one of those that are taught."""
    return encoded(pixels(name, index, (side, side)))
