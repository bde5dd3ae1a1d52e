"""Masks that were drawn, and their IoU by numpy alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def values_in(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def iou_of(counts: np.ndarray) -> list[float | None]:
    """By channel, from counts [K, K] of truth against prediction; None for a channel that occurs in neither."""
    either = [counts[c].sum() + counts[:, c].sum() - counts[c, c] for c in range(len(counts))]
    return [float(counts[c, c] / either[c]) if either[c] else None for c in range(len(counts))]


def mean(values: list[float | None]) -> float:
    present = [value for value in values if value is not None]
    return sum(present) / len(present)
