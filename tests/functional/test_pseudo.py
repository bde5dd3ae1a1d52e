"""Pseudo-labels and their thresholds against pixels walked one by one, sorted scores and hand-made counts."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sapwood.functional import segmentation as seg

STEP = 2.0**-11  # thresholds are rounded down to 12 significant bits


def score_by_hand(pixel: np.ndarray, entropy: str, channels: int) -> tuple[float, int]:
    """(score, predicted class) of one pixel's logits [K]."""
    p = np.exp(pixel - pixel.max())
    p = p / p.sum()
    if entropy == "sum":
        return -sum(x * math.log(x) for x in p) / math.log(len(p)), int(p.argmax())
    mean = -sum(x * math.log(x + 1e-8) for x in p) / len(p)
    return mean / math.log(len(p) + 1e-8) / math.log(channels), int(p.argmax())


def case(seed: int = 0, known: int = 3, batch: int = 2, size: tuple[int, int] = (4, 5)) -> tuple[Tensor, Tensor]:
    """(teacher's logits, targets of background, a new class and ignored pixels)."""
    rng = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, known, *size, generator=rng, dtype=torch.float64)
    drawn = torch.randint(0, 5, (batch, *size), generator=rng)
    return logits, torch.tensor([0, 0, 0, known, 255])[drawn]


@pytest.mark.parametrize("entropy", ["sum", "mean"])
def test_entropy_of_every_pixel(entropy: Any) -> None:
    logits, _ = case()
    found = seg.prediction_entropy(logits, entropy, channels=5)
    for b, i, j in np.ndindex(*found.shape):
        expected, _ = score_by_hand(logits[b, :, i, j].numpy(), entropy, 5)
        assert found[b, i, j].item() == pytest.approx(expected, rel=1e-12)
    assert seg.prediction_entropy(logits.half(), entropy, channels=5).dtype == torch.float32


def test_range_of_both_entropies() -> None:
    even = torch.zeros(1, 16, 1, 1)
    assert seg.prediction_entropy(even).item() == pytest.approx(1)
    # The official one is a mean over the channels and divided by the logarithm of the channels to come.
    assert seg.prediction_entropy(even, "mean", 17).item() == pytest.approx(1 / (16 * math.log(17)), rel=1e-5)
    certain = torch.tensor([80.0] + [0.0] * 15).reshape(1, 16, 1, 1)
    assert seg.prediction_entropy(certain).item() == pytest.approx(0, abs=1e-6)
    assert seg.prediction_entropy(torch.ones(1, 1, 1, 1)).item() == 0  # one channel leaves no doubt


def labels_by_hand(
    logits: Tensor, target: Tensor, taus: list[float], entropy: str, channels: int
) -> tuple[Tensor, list]:
    found, shares = target.clone(), []
    for b in range(len(target)):
        certain = asked = 0
        for i, j in np.ndindex(*target.shape[1:]):
            if target[b, i, j] == 0:
                asked += 1
                score, predicted = score_by_hand(logits[b, :, i, j].numpy(), entropy, channels)
                sure = score < taus[predicted]
                certain += sure
                found[b, i, j] = predicted if sure else 255
        shares.append(certain / asked)
    return found, shares


@pytest.mark.parametrize(("entropy", "scale"), [("sum", 1.0), ("mean", 1 / (3 * math.log(5)))])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_pseudo_labels(entropy: Any, scale: float, dtype: Any) -> None:
    logits, target = case(size=(8, 8))
    taus = [0.8 * scale, 0.6 * scale, 0.7 * scale]
    labels, shares = labels_by_hand(logits, target, taus, entropy, 5)
    found, share = seg.pseudo_labels(logits, target.to(dtype), torch.tensor(taus), entropy=entropy, channels=5)
    assert found.dtype == dtype
    assert torch.equal(found.long(), labels)
    assert share.tolist() == pytest.approx(shares)
    assert {0, 1, 2, 3, 255} == set(labels.flatten().tolist())  # the case shows every outcome
    assert all(0 < s < 1 for s in shares)
    assert torch.equal(found.long()[target != 0], target[target != 0])


def test_the_threshold_itself_is_not_certain() -> None:
    logits, target = torch.tensor([0.3, 0.0]).reshape(1, 2, 1, 1), torch.zeros(1, 1, 1).long()
    score = seg.prediction_entropy(logits).item()
    for tau, expected in ((score, 255), (np.nextafter(np.float32(score), 1), 0), (math.nan, 255), (math.inf, 0)):
        assert seg.pseudo_labels(logits, target, torch.tensor([tau, 1.0]))[0].item() == expected


def test_a_picture_without_background() -> None:
    logits, target = torch.zeros(2, 2, 1, 2), torch.tensor([[[2, 255]], [[2, 0]]])
    tau = torch.ones(2) * 2
    assert seg.pseudo_labels(logits, target, tau)[1].tolist() == [1, 1]
    assert seg.pseudo_labels(logits, target, tau, empty_share=0.0)[1].tolist() == [0, 1]


def test_another_index_to_ignore() -> None:
    logits, target = torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 99]]])
    assert seg.pseudo_labels(logits, target, torch.zeros(2), ignore_index=99)[0].tolist() == [[[99, 99]]]


def medians_by_hand(batches: list[tuple[Tensor, Tensor]], entropy: str, channels: int) -> list[list[float]]:
    """Scores of the pixels labelled 0 by predicted class."""
    found: list[list[float]] = [[] for _ in range(batches[0][0].shape[1])]
    for logits, target in batches:
        for b, i, j in np.ndindex(*target.shape):
            if target[b, i, j] == 0:
                score, predicted = score_by_hand(logits[b, :, i, j].numpy(), entropy, channels)
                found[predicted].append(score)
    return found


@pytest.mark.parametrize("entropy", ["sum", "mean"])
@given(seed=st.integers(0, 1000), known=st.integers(2, 4), number=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_exact_medians(entropy: Any, seed: int, known: int, number: int) -> None:
    batches = [case(seed + i, known, 1 + i, (3, 3)) for i in range(number)]
    found = seg.entropy_thresholds(iter(batches), entropy=entropy, channels=6, minimum=1e-4)
    for tau, scores in zip(found.tolist(), medians_by_hand(batches, entropy, 6), strict=True):
        exact = max(statistics.median(scores), 1e-4) if scores else 1e-4
        assert exact * (1 - STEP) - 1e-9 <= tau <= exact * (1 + 1e-6)


def test_medians_of_even_and_odd_numbers() -> None:
    logits = torch.tensor([[4.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [0.0, 9.0]]).reshape(5, 2, 1, 1)
    background = torch.zeros(5, 1, 1).long()
    scores = sorted(seg.prediction_entropy(logits)[:4].flatten().tolist())
    even = seg.entropy_thresholds([(logits, background)], minimum=0.0)
    assert even[0].item() == pytest.approx((scores[1] + scores[2]) / 2, rel=STEP)
    odd = seg.entropy_thresholds([(logits[1:], background[1:])], minimum=0.0)
    assert odd[0].item() == pytest.approx(scores[2], rel=STEP)
    # Pixels that the round labels, and ignored ones, do not count.
    background[0], background[1] = 255, 2
    assert seg.entropy_thresholds([(logits, background)])[0].item() == pytest.approx(sum(scores[1:3]) / 2, rel=STEP)
    background[2] = 255
    assert seg.entropy_thresholds([(logits, background)])[0].item() == pytest.approx(scores[1], rel=STEP)


def test_minimum() -> None:
    certain, background = torch.tensor([[9.0, 0.0]]).reshape(1, 2, 1, 1), torch.zeros(1, 1, 1).long()
    assert seg.entropy_thresholds([(certain, background)]).tolist() == pytest.approx([0.05, 0.05])
    official = seg.entropy_thresholds([(certain, background)], entropy="mean", channels=3)
    assert official.tolist() == pytest.approx([0.001, 0.001])
    raised = seg.entropy_thresholds([(certain, background)], minimum=0.2)
    assert raised.tolist() == pytest.approx([0.2, 0.2])


def test_scores_at_both_ends_are_counted() -> None:
    even, sure = torch.zeros(1, 2, 1, 1), torch.tensor([[200.0, 0.0]]).reshape(1, 2, 1, 1)
    background = torch.zeros(1, 1, 1).long()
    assert seg.entropy_thresholds([(even, background)])[0].item() == 1
    assert seg.entropy_thresholds([(sure, background)], minimum=0.0)[0].item() == pytest.approx(0, abs=1e-7)


def of_scores(scores: list[float]) -> tuple[Tensor, Tensor]:
    """A batch whose pixels are all predicted as class 0 of two, with these scores (bisection)."""
    found = []
    for score in scores:
        low, high = 0.5, 1.0
        for _ in range(80):
            p = (low + high) / 2
            entropy = -(p * math.log(p) + (1 - p) * math.log(1 - p)) / math.log(2) if p < 1 else 0
            low, high = (p, high) if entropy > score else (low, p)
        found.append([math.log(low / (1 - low)), 0.0])
    logits = torch.tensor(found, dtype=torch.float64).reshape(len(scores), 2, 1, 1)
    return logits, torch.zeros(len(scores), 1, 1).long()


def official(scores: list[float], **options: Any) -> float:
    return seg.entropy_thresholds([of_scores(scores)], median="official_histogram", **options)[0].item()


def test_official_histogram_in_bin_zero_is_interpolated() -> None:
    # 8 of 10 scores lie in [0, 0.01): half the count is 5, 5/8 of the way through the bin. The minimum is off.
    assert official([0.004] * 8 + [0.5] * 2, minimum=0.0) == pytest.approx(0.01 * 5 / 8, rel=1e-5)


def test_official_histogram_beyond_bin_zero_is_wrong() -> None:
    scores = [0.004] * 2 + [0.015] * 10
    # Bin 0 holds 2, half the count is 6. What is added is the bin's index, 0, where its count 2 was meant: the median
    # lies 6/10 of the way through bin 1, where (6 - 2)/10 is right.
    assert official(scores, minimum=0.0) == pytest.approx(0.01 + 0.01 * 6 / 10, rel=1e-5)
    exact = seg.entropy_thresholds([of_scores(scores)])[0].item()
    assert exact == pytest.approx(0.05)  # the true median is below the default minimum of entropy="sum"
    assert seg.entropy_thresholds([of_scores(scores)], minimum=0.0)[0].item() == pytest.approx(0.015, rel=STEP)


def test_official_histogram_at_an_empty_bin() -> None:
    # Half of 2 is 1, which the sum of the indices 0 + 1 reaches at bin 2, which is empty: 0 / 0. No pixel is certain.
    logits, background = of_scores([0.5, 0.5])
    tau = seg.entropy_thresholds([(logits, background)], median="official_histogram")
    assert math.isnan(tau[0].item())
    assert seg.pseudo_labels(logits, background, tau)[0].flatten().tolist() == [255, 255]


def test_official_histogram_without_a_match() -> None:
    # Half of 4 is 2: the sums 0, 0, 1, 3, ... pass it by, and the last bin is empty: (2 - sum) / 0 = -inf, the minimum.
    assert official([0.5] * 4) == pytest.approx(0.05)
    # No bin holds the half of a third each, and half of 10200 is above the last sum, 4950: +inf, all is certain.
    logits, background = (part.repeat(3400, *[1] * (part.ndim - 1)) for part in of_scores([0.005, 0.015, 0.025]))
    tau = seg.entropy_thresholds([(logits, background)], median="official_histogram")
    assert tau[0].item() == math.inf
    assert seg.entropy_thresholds([(logits, background)], minimum=0.0)[0].item() == pytest.approx(0.015, rel=STEP)


def test_official_histogram_reads_bin_28_for_29() -> None:
    # int(0.29 * 100) = 28: with all pixels in bin 29 the rule never sees them, with all in bin 28 it may.
    half = sum(range(29)) + 10  # in the bin after the indices 0..27 have been added, half lies within the count
    assert official([0.285] * (2 * half), minimum=0.0) == pytest.approx(
        0.28 + 0.01 * (half - sum(range(28))) / (2 * half), rel=1e-5
    )
    assert official([0.295] * (2 * half), minimum=0.0) != pytest.approx(0.295, rel=0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: seg.prediction_entropy(x, "mean"), "needs the number of channels after the round, at least 3"),
        (lambda x, y: seg.prediction_entropy(x, "mean", 2), "at least 3"),
        (lambda x, y: seg.prediction_entropy(x, "max"), "entropy must be sum or mean, got 'max'"),
        (lambda x, y: seg.entropy_thresholds([]), "at least one batch"),
        (lambda x, y: seg.entropy_thresholds([(x, y)], median="mean"), "median must be exact or official_histogram"),
        (lambda x, y: seg.entropy_thresholds([(x, y), (x[:, :2], y)]), "a batch has 2 channels, the ones before it 3"),
        (lambda x, y: seg.entropy_thresholds([(x, y[:1])]), r"targets are \[1, 4, 5\], the teacher's logits"),
        (lambda x, y: seg.pseudo_labels(x, y, torch.zeros(2)), r"thresholds are \[2\], the teacher has 3 channels"),
        (lambda x, y: seg.pseudo_labels(x, y[:, :2], torch.zeros(3)), r"targets are \[2, 2, 5\]"),
    ],
)
def test_what_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(*case())
