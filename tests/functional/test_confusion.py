"""Confusion matrix and IoU against scikit-learn, and against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix as reference
from sklearn.metrics import jaccard_score

from sapwood.functional.confusion import confusion_counts, row_sums
from sapwood.functional.segmentation import confusion_matrix, iou_from_confusion, mean_iou

# Rows truth. Channel 2 has no true pixel but one predicted; channel 3 has neither.
COUNTS = torch.tensor([[6, 2, 0, 0], [1, 3, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_against_scikit_learn(rng: torch.Generator, dtype: torch.dtype) -> None:
    target = torch.randint(0, 5, (3, 7, 9), generator=rng)
    found = torch.where(torch.rand(3, 7, 9, generator=rng) < 0.6, target, torch.randint(0, 5, (3, 7, 9), generator=rng))
    target[:, 0] = 255
    kept = target != 255
    confusion = confusion_matrix(found.to(dtype), target.to(dtype), 5)
    assert confusion.dtype == torch.int64
    truth, guess = target[kept].numpy(), found[kept].numpy()
    np.testing.assert_array_equal(confusion, reference(truth, guess, labels=range(5)))
    np.testing.assert_allclose(iou_from_confusion(confusion), jaccard_score(truth, guess, average=None))
    assert mean_iou(confusion) == pytest.approx(jaccard_score(truth, guess, average="macro"))


def test_counts_of_pictures(rng: torch.Generator) -> None:
    truth, guess = torch.randint(0, 5, (2, 90), generator=rng)
    counts = confusion_counts(truth, guess, 6)
    np.testing.assert_array_equal(counts, reference(truth, guess, labels=range(6)))
    assert row_sums(counts).tolist() == truth.bincount(minlength=6).tolist()


def test_pictures_add_up_and_unseen_classes_drop_out(rng: torch.Generator) -> None:
    target, found = torch.randint(0, 6, (2, 40), generator=rng), torch.randint(0, 4, (2, 40), generator=rng)
    whole = confusion_matrix(found, target, 4)
    assert torch.equal(whole, sum(confusion_matrix(found[i], target[i], 4) for i in range(2)))  # type: ignore[arg-type]
    assert whole.sum() == int((target < 4).sum()) < 80
    assert confusion_matrix(found, target, 4, ignore_index=0)[0].sum() == 0
    assert confusion_matrix(found[:, :0], target[:, :0], 4).sum() == 0


def test_iou_is_nan_only_where_nothing_is_there() -> None:
    found = iou_from_confusion(COUNTS)
    assert found.dtype == torch.float64
    assert found[:3].tolist() == [6 / 9, 3 / 7, 0]
    assert math.isnan(found[3])


def test_what_the_mean_runs_over() -> None:
    a, b = 6 / 9, 3 / 7
    assert mean_iou(COUNTS) == pytest.approx((a + b) / 2)
    assert mean_iou(COUNTS, absent="zero") == pytest.approx((a + b) / 4)
    assert mean_iou(COUNTS, background="exclude") == pytest.approx(b)
    assert mean_iou(COUNTS, background="exclude", absent="zero") == pytest.approx(b / 3)
    assert mean_iou(COUNTS, classes=[0, 2]) == pytest.approx(a)
    assert mean_iou(COUNTS, classes=[0, 1, 2], background="exclude", absent="zero") == pytest.approx(b / 2)
    assert math.isnan(mean_iou(COUNTS, classes=[2, 3]))
    assert math.isnan(mean_iou(COUNTS, classes=[]))


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(ValueError, match=r"predictions are \[2\], targets \[3\]"):
        confusion_matrix(torch.zeros(2), torch.zeros(3), 2)
    with pytest.raises(ValueError, match=r"predictions hold 0\.\.2, known are 0\.\.1"):
        confusion_matrix(torch.tensor([0, 2, 7]), torch.tensor([0, 1, 255]), 2)
    with pytest.raises(ValueError, match="include or exclude"):
        mean_iou(COUNTS, background="skip")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="skip or zero"):
        mean_iou(COUNTS, absent="include")  # type: ignore[arg-type]
