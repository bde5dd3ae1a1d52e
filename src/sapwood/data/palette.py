"""Colours for classes: palettes, masks that any viewer shows in colour, and overlays."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sapwood.data.legend import IGNORE, Colour


def palette(count: int = 256) -> list[Colour]:
    """Colours of the values 0 to ``count`` - 1, as in the masks of PASCAL VOC.

    The bits of a value are dealt to red, green and blue in turn, highest bits of the colour first, so that small
    values lie far apart; 0 is black, 255 is cream.

    >>> palette(4)
    [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
    """
    colours = []
    for value in range(count):
        parts = [0, 0, 0]
        for bit in range(8):
            for part in range(3):
                parts[part] |= (value >> (3 * bit + part) & 1) << (7 - bit)
        colours.append((parts[0], parts[1], parts[2]))
    return colours


_COLOURS = np.array(palette(), np.uint8)
_SOFTWARE = "sapwood predict"


def write_mask(path: Path | BinaryIO, values: np.ndarray, *, drawn: bool = False) -> None:
    """Values uint8 [H, W] as a palette PNG: its indices are the values, its colours are ``palette``'s.

    ``drawn`` marks it as a prediction, see ``was_drawn``.
    """
    if values.dtype != np.uint8 or values.ndim != 2:
        raise ValueError(f"a mask must be uint8 [H, W], got {values.dtype} {list(values.shape)}")
    image = Image.fromarray(np.ascontiguousarray(values))
    image.putpalette(_COLOURS.tobytes())
    image.save(path, format="PNG", pnginfo=_mark() if drawn else None)


def write_drawn(path: Path, pixels: np.ndarray) -> None:
    """A drawing uint8 [H, W, 3] as PNG, which tells that it is one."""
    Image.fromarray(pixels).save(path, format="PNG", pnginfo=_mark())


def was_drawn(path: Path) -> bool:
    """Whether a file is a prediction, and may be replaced by a newer one."""
    try:
        with Image.open(path) as image:
            return image.format == "PNG" and image.info.get("Software") == _SOFTWARE
    except (OSError, ValueError, SyntaxError):
        return False


def _mark() -> PngInfo:
    info = PngInfo()
    info.add_text("Software", _SOFTWARE)
    return info


def overlay(rgb: np.ndarray, mask: np.ndarray, alpha: float = 0.5) -> np.ndarray:
    """A picture with the colours of its mask laid over it; background (0) and ignored (255) pixels stay.

    Args:
        rgb: uint8 [H, W, 3].
        mask: uint8 [H, W].
        alpha: share of the colour, 0 to 1.

    Returns:
        uint8 [H, W, 3].
    """
    if rgb.shape[:2] != mask.shape:
        raise ValueError(f"picture {list(rgb.shape)} and mask {list(mask.shape)} differ in size")
    out = rgb.copy()
    seen = (mask != 0) & (mask != IGNORE)
    out[seen] = np.rint((1 - alpha) * rgb[seen] + alpha * _COLOURS[mask[seen]]).astype(np.uint8)
    return out
