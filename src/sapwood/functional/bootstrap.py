"""Paired bootstrap intervals: how sure a difference of two learners is that were measured on the same pictures.

What is resampled (Efron and Tibshirani 1993, percentile method; two crossed factors): in every draw N of the N test
pictures with replacement, the same ones for both learners and in every seed; then S of the S seeds with replacement.
So the interval speaks of other test pictures and of other seeds. Two things it cannot know: with one seed nothing about
seeds, and with few the spread between them comes out too small, by about sqrt((S - 1) / S). Column i should be the same
picture in every seed; where it is not, pictures that are hard in every seed count as S independent ones, and the
interval is too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.float64]
_CELLS = 1 << 22  # of the matrix of draws by pictures that are held at once


class Difference(NamedTuple):
    """``one`` minus ``other``, and the bounds of its 95 % interval, in the unit of what was compared."""

    mean: float
    low: float
    high: float


def paired_difference(
    one: ArrayLike, other: ArrayLike, generator: np.random.Generator, draws: int = 2000
) -> Difference:
    """Difference of the means of two measures of the same pictures, with its 95 % interval.

    Args:
        one: [S, N], seeds by pictures: right or wrong, or any number a picture.
        other: [S, N], of the same seeds and pictures.
        generator: draws.
        draws: how often to draw.

    Raises:
        ValueError: shapes differ or are not [S, N] with S, N >= 1, a value is not finite, or draws < 1.

    >>> right = [[True, True, True, False]]
    >>> paired_difference(right, [[False] * 4], np.random.default_rng(0), draws=500)
    Difference(mean=0.75, low=0.25, high=1.0)
    """
    pair = _pair(one, other, "[S, N]", 2, draws)
    difference = pair[0] - pair[1]
    seeds, pictures = difference.shape
    drawn = _draw(lambda counts: counts @ difference.T / pictures, pictures, seeds, generator, draws)
    return _interval(float(difference.mean()), drawn)


def paired_iou_difference(
    one: ArrayLike, other: ArrayLike, generator: np.random.Generator, draws: int = 2000
) -> Difference:
    """Difference of the mean IoUs of two learners on the same pictures, with its 95 % interval.

    Counts are summed over the drawn pictures before they are divided, as in the measure itself. The mean is over the
    channels that occur in truth or prediction of those pictures, then over seeds.

    Args:
        one: [S, N, 3, K] pixels of each channel in each picture: intersection, predicted, truth.
        other: [S, N, 3, K], of the same seeds and pictures. The order of channels may differ between seeds.
        generator: draws.
        draws: how often to draw.

    Raises:
        ValueError: shapes differ or are not [S, N, 3, K], a value is not finite, draws < 1, or no pixel was counted.

    >>> half, all_ = [[[[1], [2], [1]]]], [[[[2], [2], [2]]]]  # one seed, one picture, one channel
    >>> paired_iou_difference(all_, half, np.random.default_rng(0), draws=10)
    Difference(mean=0.5, low=0.5, high=0.5)
    """
    pair = _pair(one, other, "[S, N, 3, K]", 4, draws)
    _, seeds, pictures, rows, channels = pair.shape
    if rows != 3:
        raise ValueError(f"counts must be [S, N, 3, K] (intersection, predicted, truth), got {list(pair.shape[1:])}")
    flat = np.ascontiguousarray(np.moveaxis(pair, 2, 0)).reshape(pictures, -1)

    def measure(counts: Floats) -> Floats:
        summed = (counts @ flat).reshape(len(counts), 2, seeds, 3, channels)
        means = _mean_iou(summed)
        return means[:, 0] - means[:, 1]

    mean = float(measure(np.ones((1, pictures))).mean())
    if np.isnan(mean):
        raise ValueError("no pixel was counted, so there is no IoU to compare")
    drawn = _draw(measure, pictures, seeds, generator, draws)
    return _interval(mean, drawn[~np.isnan(drawn)])  # a draw may hold only pictures without a counted pixel


def _mean_iou(counts: Floats) -> Floats:
    """[..., 3, K] to [...]; channels without a pixel are left out, NaN if none is left."""
    intersection, predicted, truth = counts[..., 0, :], counts[..., 1, :], counts[..., 2, :]
    union = predicted + truth - intersection
    occurs = union > 0
    iou = np.divide(intersection, union, out=np.zeros_like(union), where=occurs)
    many = occurs.sum(-1)
    return np.divide(iou.sum(-1), many, out=np.full(many.shape, np.nan), where=many > 0)


def _pair(one: ArrayLike, other: ArrayLike, wanted: str, dimensions: int, draws: int) -> Floats:
    first, second = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if first.shape != second.shape:
        raise ValueError(f"both must have one shape, got {list(first.shape)} and {list(second.shape)}")
    if first.ndim != dimensions or first.size == 0:
        raise ValueError(f"expected {wanted} with nothing empty, got {list(first.shape)}")
    pair = np.stack([first, second])
    if not np.isfinite(pair).all():
        raise ValueError("every value must be finite")
    if draws < 1:
        raise ValueError(f"draws must be >= 1, got {draws}")
    return pair


def _draw(
    measure: Callable[[Floats], Floats], pictures: int, seeds: int, generator: np.random.Generator, draws: int
) -> Floats:
    """[draws] means over the drawn seeds of ``measure``, which takes [m, N] to [m, S]."""
    found = []
    for counts in _counts(pictures, generator, draws):
        values = measure(counts)
        chosen = generator.integers(seeds, size=(len(values), seeds))
        found.append(np.take_along_axis(values, chosen, axis=1).mean(1))
    return np.concatenate(found)


def _counts(pictures: int, generator: np.random.Generator, draws: int) -> Iterator[Floats]:
    """How often each picture was drawn, [m, N], a part of the draws at a time."""
    most = max(1, _CELLS // pictures)
    for first in range(0, draws, most):
        part = min(most, draws - first)
        yield np.stack(
            [np.bincount(generator.integers(pictures, size=pictures), minlength=pictures) for _ in range(part)]
        ).astype(np.float64)


def _interval(mean: float, drawn: Floats) -> Difference:
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    return Difference(mean, low, high)
