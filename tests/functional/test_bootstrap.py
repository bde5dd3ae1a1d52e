"""Intervals that can be worked out by hand, or that the normal distribution gives."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sapwood.functional.bootstrap import paired_difference, paired_iou_difference


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_one_seed_agrees_with_the_normal_approximation(rng: np.random.Generator) -> None:
    one, other = rng.random((1, 2000)) < 0.8, rng.random((1, 2000)) < 0.7
    change = one[0].astype(float) - other[0]
    mean, low, high = paired_difference(one, other, rng, draws=4000)
    error = 1.96 * change.std() / np.sqrt(2000)
    assert mean == pytest.approx(one.mean() - other.mean(), abs=1e-12)
    assert (low, high) == pytest.approx((mean - error, mean + error), abs=0.08 * error)


def test_pairing_makes_the_interval_narrow(rng: np.random.Generator) -> None:
    """Right on the same pictures but for 40 of 1000: the variance is that of the 40, not of two samples of 1000."""
    one = (rng.random(1000) < 0.5)[None]
    other = one.copy()
    other[0, :40] = ~other[0, :40]
    change = one[0].astype(float) - other[0]
    _, low, high = paired_difference(one, other, rng, draws=4000)
    assert high - low == pytest.approx(2 * 1.96 * change.std() / np.sqrt(1000), rel=0.08)
    assert high - low < 0.03  # unpaired: 2 · 1.96 · sqrt(2 · 0.25 / 1000) = 0.088


def test_seeds_are_resampled(rng: np.random.Generator) -> None:
    """Without spread between pictures, two seeds give 0, 0.1, 0.2 with 1/4, 1/2, 1/4: the bounds are the ends."""
    one = np.stack([np.full(50, 0.5), np.full(50, 0.7)])
    assert paired_difference(one, np.full((2, 50), 0.5), rng) == pytest.approx((0.1, 0.0, 0.2))


def test_the_same_pictures_in_every_seed_are_not_more_pictures(rng: np.random.Generator) -> None:
    one, other = rng.random((1, 500)) < 0.8, rng.random((1, 500)) < 0.6
    single = paired_difference(one, other, rng, draws=4000)
    thrice = paired_difference(np.repeat(one, 3, 0), np.repeat(other, 3, 0), rng, draws=4000)
    assert thrice.high - thrice.low == pytest.approx(single.high - single.low, rel=0.1)


def test_independent_pictures_in_every_seed_are(rng: np.random.Generator) -> None:
    """Four seeds with pictures of their own: the pictures' part of the variance is a quarter of one seed's."""
    change = rng.normal(0, 1, (4, 400))
    change -= change.mean(1, keepdims=True)  # no spread between seeds
    _, low, high = paired_difference(change, np.zeros_like(change), rng, draws=4000)
    # The drawn seeds repeat: E[sum of squared shares] = (2 S - 1) / S² = 7/16 of one seed's variance.
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(7 / 16 / 400), rel=0.1)


def iou(counts: np.ndarray) -> float:
    """Mean IoU of [pictures, 3, K], class by class."""
    shares = []
    for channel in range(counts.shape[2]):
        intersection, predicted, truth = (int(counts[:, row, channel].sum()) for row in range(3))
        if union := predicted + truth - intersection:
            shares.append(intersection / union)
    return sum(shares) / len(shares)


def pixels(rng: np.random.Generator, seeds: int, pictures: int, channels: int, right: float) -> np.ndarray:
    truth = rng.integers(0, 200, (seeds, pictures, channels))
    intersection = rng.binomial(truth, right)
    return np.stack([intersection, intersection + rng.integers(0, 40, truth.shape), truth], axis=2)


def test_mean_iou_of_two_pictures_by_enumeration(rng: np.random.Generator) -> None:
    """Of two pictures there are four equally likely draws; with 2000 draws the bounds are the extreme ones."""
    one, other = pixels(rng, 1, 2, 3, 0.9), pixels(rng, 1, 2, 3, 0.6)
    draws = [iou(one[0, list(pair)]) - iou(other[0, list(pair)]) for pair in itertools.product((0, 1), repeat=2)]
    found = paired_iou_difference(one, other, rng)
    assert found == pytest.approx((iou(one[0]) - iou(other[0]), min(draws), max(draws)), abs=1e-12)


def test_mean_iou_of_many_pictures_agrees_with_the_jackknife(rng: np.random.Generator) -> None:
    one, other = pixels(rng, 1, 150, 4, 0.8), pixels(rng, 1, 150, 4, 0.7)
    without = [iou(np.delete(one[0], index, 0)) - iou(np.delete(other[0], index, 0)) for index in range(one.shape[1])]
    error = 1.96 * np.sqrt((len(without) - 1) * np.var(without))
    mean, low, high = paired_iou_difference(one, other, rng)
    assert (low, high) == pytest.approx((mean - error, mean + error), abs=0.15 * error)


def test_classes_that_occur_nowhere_are_left_out(rng: np.random.Generator) -> None:
    one, other = pixels(rng, 2, 20, 3, 0.9), pixels(rng, 2, 20, 3, 0.6)
    wide = [np.concatenate([each, np.zeros_like(each[..., :1])], -1) for each in (one, other)]
    expected = paired_iou_difference(one, other, np.random.default_rng(1))
    assert paired_iou_difference(*wide, np.random.default_rng(1)) == pytest.approx(expected)


def test_draws_without_a_counted_pixel_do_not_spoil_the_interval(rng: np.random.Generator) -> None:
    one = np.array([[[[4], [5], [5]], [[0], [0], [0]]]])
    assert paired_iou_difference(one, one, rng) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="no pixel"):
        paired_iou_difference(0 * one, 0 * one, rng)


def test_the_same_generator_gives_the_same_interval() -> None:
    one, other = np.random.default_rng(0).random((2, 2, 15))
    first, second = (paired_difference(one, other, np.random.default_rng(7)) for _ in range(2))
    assert first == second
    assert paired_difference(one, other, np.random.default_rng(8)) != first


def test_memory_is_bounded_by_parts(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    monkeypatch.setattr("sapwood.functional.bootstrap._CELLS", 1000)  # ten draws of 100 pictures at once
    one, other = rng.random((1, 100)) < 0.9, rng.random((1, 100)) < 0.5
    change = one[0].astype(float) - other[0]
    _, low, high = paired_difference(one, other, rng, draws=2005)
    assert high - low == pytest.approx(2 * 1.96 * change.std() / 10, rel=0.15)


@pytest.mark.parametrize(
    ("one", "other", "draws", "message"),
    [
        ([[1.0, 2.0]], [[1.0]], 10, "one shape"),
        ([1.0], [1.0], 10, r"\[S, N\]"),
        ([[]], [[]], 10, "empty"),
        ([[float("nan")]], [[1.0]], 10, "finite"),
        ([[1.0]], [[1.0]], 0, "draws"),
    ],
)
def test_faults_are_refused(
    rng: np.random.Generator, one: list[object], other: list[object], draws: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        paired_difference(one, other, rng, draws)  # type: ignore[arg-type]


def test_counts_must_be_three_rows(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match=r"\[S, N, 3, K\]"):
        paired_iou_difference(np.ones((1, 2, 2, 5)), np.ones((1, 2, 2, 5)), rng)
