"""Outlines and run lengths as pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def paint_polygon(canvas: np.ndarray, points: np.ndarray, value: int) -> None:
    """Give ``value`` to the pixels of ``canvas`` whose centres lie inside a polygon.

    Inside is where a line from outside crosses the outline an odd number of times. Unlike in Pillow's drawing, which
    rounds corners and includes the outline, neighbours with a common edge share no pixel and leave none out.

    Args:
        canvas: uint8 [H, W], painted in place.
        points: float [N, 2], corners (x, y); pixel (row, column) covers x in [column, column + 1).
        value: what to paint.

    >>> canvas = np.zeros((3, 4), np.uint8)
    >>> paint_polygon(canvas, np.array([[1, 0], [3, 0], [3, 2], [1, 2]]), 7)
    >>> canvas.tolist()
    [[0, 7, 7, 0], [0, 7, 7, 0], [0, 0, 0, 0]]
    """
    height, width = canvas.shape
    left, upper = (max(0, math.floor(low)) for low in points.min(0))
    right, lower = (min(side, math.ceil(high)) for side, high in zip((width, height), points.max(0), strict=True))
    if left >= right or upper >= lower:
        return
    crossed = np.zeros((lower - upper, right - left + 1), bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0), strict=True):
        first, last = (min(max(math.ceil(y - 0.5), upper), lower) for y in sorted((y0, y1)))
        rows = np.arange(first, last)
        x = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0)) if len(rows) else rows
        crossed[rows - upper, np.clip(np.ceil(x - 0.5).astype(int), left, right) - left] ^= True
    inside = np.logical_xor.accumulate(crossed, axis=1)[:, :-1]
    canvas[upper:lower, left:right][inside] = value


def polygon_area(points: np.ndarray) -> float:
    """Area of a polygon, float [N, 2] (the shoelace formula)."""
    x, y = points.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def paint_circle(canvas: np.ndarray, centre: Sequence[float], radius: float, value: int) -> None:
    """Give ``value`` to the pixels of ``canvas`` whose centres lie within ``radius`` of ``centre`` (x, y)."""
    rows, columns = (np.arange(side) + 0.5 for side in canvas.shape)
    canvas[(columns - centre[0]) ** 2 + (rows[:, None] - centre[1]) ** 2 <= radius**2] = value


def runs_of(text: str) -> list[int]:
    """Run lengths from COCO's compressed text.

    Each number is written in groups of five bits, low ones first, as characters from ``0`` on; bit 5 says that
    another group follows, bit 4 of the last one is the sign. From the fourth on, numbers are differences to the one
    two places before.

    >>> runs_of("52203"), runs_of("0T2")
    ([5, 2, 2, 2, 5], [0, 68])
    """
    runs: list[int] = []
    number = shift = 0
    for character in text:
        group = ord(character) - 48
        if not 0 <= group < 64:
            raise ValueError(f"{character!r} does not belong into compressed run lengths")
        number |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            number -= 1 << shift
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        number = shift = 0
    return runs


def paint_runs(canvas: np.ndarray, runs: Sequence[int], value: int) -> None:
    """Give ``value`` to every second of the ``runs``, which go down the columns of ``canvas`` from left to right.

    Raises:
        ValueError: the runs do not add up to the canvas.
    """
    if sum(runs) != canvas.size or any(run < 0 for run in runs):
        raise ValueError(f"run lengths add up to {sum(runs)} pixels, not to {canvas.shape[1]} x {canvas.shape[0]}")
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    canvas.T[inside.reshape(canvas.T.shape)] = value
