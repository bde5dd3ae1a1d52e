"""What a report's data may and may not be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sapwood.errors import ConfigError
from sapwood.report import MaskSample, ReportData, ReportTask, Sample

TASK = ReportTask("birds", ("owl",), images=9, seconds=1.0, trainable_parameters=10, bytes=100)


def data(accuracy: tuple[tuple[float | None, ...], ...], tasks: tuple[ReportTask, ...]) -> ReportData:
    return ReportData("model", "v0001-0", "ncm", "random:vit-tiny", "today", tasks=tasks, accuracy=accuracy)


def test_accuracy_so_far_weights_tasks_by_their_classes() -> None:
    pair = (replace(TASK, classes=("owl",)), replace(TASK, classes=("cat", "dog", "cow")))
    assert data(((1.0, None), (0.5, 0.9)), pair).after_each == (1.0, pytest.approx((0.5 + 3 * 0.9) / 4))


def test_a_round_without_classes_has_no_part_in_the_mean() -> None:
    three = (TASK, replace(TASK, classes=()), replace(TASK, classes=("cat", "dog", "cow")))
    assert data(((1.0,), (0.5, None), (0.5, None, 0.9)), three).after_each == (1.0, 0.5, pytest.approx(3.2 / 4))


def test_accuracy_so_far_is_not_made_up_from_a_part_of_the_row() -> None:
    assert data(((1.0, None), (None, 0.9)), (TASK, TASK)).after_each == (1.0, None)


def test_a_row_that_ends_early_was_not_measured_beyond_its_end() -> None:
    assert data(((0.5,), (0.5, 0.5)), (TASK, TASK)).accuracy == ((0.5, None), (0.5, 0.5))


def test_nan_is_a_cell_that_was_never_measured() -> None:
    assert data(((0.5, float("nan")), (0.5, 0.5)), (TASK, TASK)).accuracy[0] == (0.5, None)


@pytest.mark.parametrize(
    ("accuracy", "message"),
    [
        (((0.5,),), "2 tasks must have 2 rows of at most 2 cells, got 1 rows of 2"),
        (((0.5, None, None), (0.5,)), "2 tasks must have 2 rows of at most 2 cells, got 2 rows of 2 or 3"),
        (((73.4, None), (0.5, 0.5)), "fractions in 0..1"),
    ],
)
def test_a_wrong_matrix_is_refused(accuracy: tuple[tuple[float | None, ...], ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        data(accuracy, (TASK, TASK))


def test_a_wrong_sample_is_refused_with_all_its_faults() -> None:
    with pytest.raises(ConfigError, match=r"float64 \[4, 4\].*score must be in 0..1, got 97") as caught:
        Sample(np.zeros((4, 4)), "owl", 97.0)
    assert "uint8 [H, W, 3]" in str(caught.value)


def test_masks_of_another_size_than_their_picture_are_refused() -> None:
    image, mask = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8)
    assert MaskSample(image, mask, mask, 0.5).right == 0.5
    with pytest.raises(ConfigError, match=r"truth must be uint8 of its image's size, got uint8 \[6, 4\]") as caught:
        MaskSample(image, mask.T, mask.astype(np.int64), 97.0)
    assert "predicted must be uint8 of its image's size, got int64 [4, 6]; what is right" in str(caught.value)
