from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sapwood.functional import metrics

fractions = st.floats(0, 1, allow_nan=False, width=32)


@st.composite
def matrices(draw: st.DrawFn, least: int = 1) -> np.ndarray:
    """Lower triangle measured, the rest NaN, as a run without probes leaves it."""
    tasks = draw(st.integers(least, 6))
    matrix = np.full((tasks, tasks), np.nan)
    for i in range(tasks):
        for j in range(i + 1):
            matrix[i, j] = draw(fractions)
    return matrix


@given(matrices(), st.data())
def test_accuracies_equal_a_loop(matrix, data):
    tasks = len(matrix)
    sizes = data.draw(st.lists(st.integers(1, 500), min_size=tasks, max_size=tasks))
    curve = []
    for i in range(tasks):
        right = sum(sizes[j] * matrix[i, j] for j in range(i + 1))
        curve.append(right / sum(sizes[: i + 1]))
    assert metrics.incremental_accuracies(matrix, sizes) == pytest.approx(curve, abs=1e-12)
    assert metrics.last_accuracy(matrix, sizes) == pytest.approx(curve[-1], abs=1e-12)
    assert metrics.average_incremental_accuracy(matrix, sizes) == pytest.approx(sum(curve) / tasks, abs=1e-12)


@given(matrices())
def test_without_weights_tasks_count_equally(matrix):
    means = [np.nanmean(row) for row in matrix]
    assert metrics.last_accuracy(matrix) == pytest.approx(means[-1])
    assert metrics.average_incremental_accuracy(matrix) == pytest.approx(np.mean(means))


@given(matrices(least=2))
def test_forgetting_equals_a_loop(matrix):
    tasks, total = len(matrix), 0.0
    for j in range(tasks - 1):
        best = max(matrix[i, j] for i in range(j, tasks - 1))
        total += best - matrix[tasks - 1, j]
    assert metrics.forgetting(matrix) == pytest.approx(total / (tasks - 1), abs=1e-12)


@given(matrices(least=2))
def test_backward_transfer_equals_a_loop_and_bounds_forgetting(matrix):
    tasks, total = len(matrix), 0.0
    for j in range(tasks - 1):
        total += matrix[tasks - 1, j] - matrix[j, j]
    assert metrics.backward_transfer(matrix) == pytest.approx(total / (tasks - 1), abs=1e-12)
    assert metrics.forgetting(matrix) >= -metrics.backward_transfer(matrix) - 1e-12


@given(matrices(least=2), st.data())
def test_forward_transfer_equals_a_loop(matrix, data):
    tasks = len(matrix)
    baseline = data.draw(st.lists(fractions, min_size=tasks, max_size=tasks))
    total = 0.0
    for j in range(1, tasks):
        matrix[j - 1, j] = data.draw(fractions)
        total += matrix[j - 1, j] - baseline[j]
    assert metrics.forward_transfer(matrix, baseline) == pytest.approx(total / (tasks - 1), abs=1e-12)


@given(matrices(), st.data())
def test_learning_accuracy_and_intransigence_equal_loops(matrix, data):
    tasks = len(matrix)
    joint = data.draw(st.lists(fractions, min_size=tasks, max_size=tasks))
    diagonal = [matrix[j, j] for j in range(tasks)]
    gaps = [joint[j] - diagonal[j] for j in range(tasks)]
    assert metrics.learning_accuracy(matrix) == pytest.approx(sum(diagonal) / tasks, abs=1e-12)
    assert metrics.intransigence(matrix, joint) == pytest.approx(sum(gaps) / tasks, abs=1e-12)


def test_forgetting_is_negative_where_later_tasks_helped():
    # A maximum that included the last row would give 0 here.
    assert metrics.forgetting([[0.5, None], [0.75, 0.5]]) == -0.25


def test_one_task():
    one = [[0.75]]
    assert metrics.last_accuracy(one) == metrics.average_incremental_accuracy(one) == 0.75
    assert metrics.learning_accuracy(one) == 0.75
    assert metrics.forgetting(one) == metrics.backward_transfer(one) == 0.0
    assert metrics.forward_transfer(one, [0.1]) is None
    assert metrics.intransigence(one, [1.0]) == 0.25


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor, lambda m: torch.tensor(m, requires_grad=True)])
def test_any_kind_of_matrix(convert):
    rows = [[1.0, math.nan], [0.5, 0.75]]
    assert metrics.average_incremental_accuracy(convert(rows)) == 0.8125


MEASURES = {
    "last": (metrics.last_accuracy, {(2, 0), (2, 1), (2, 2)}),
    "incremental": (metrics.average_incremental_accuracy, {(i, j) for i in range(3) for j in range(i + 1)}),
    "forgetting": (metrics.forgetting, {(0, 0), (1, 0), (1, 1), (2, 0), (2, 1)}),
    "backward": (metrics.backward_transfer, {(0, 0), (1, 1), (2, 0), (2, 1)}),
    "forward": (lambda m: metrics.forward_transfer(m, [0.1] * 3), {(0, 1), (1, 2)}),
    "learning": (metrics.learning_accuracy, {(0, 0), (1, 1), (2, 2)}),
    "intransigence": (lambda m: metrics.intransigence(m, [1.0] * 3), {(0, 0), (1, 1), (2, 2)}),
}


@pytest.mark.parametrize("name", MEASURES)
def test_a_cell_never_measured_is_named_and_never_invented(name):
    measure, needed = MEASURES[name]
    full = np.random.default_rng(0).random((3, 3))
    value = measure(full)
    for i in range(3):
        for j in range(3):
            holed = full.copy()
            holed[i, j] = np.nan
            if (i, j) in needed:
                with pytest.raises(ValueError, match=rf"accuracy\[{i}, {j}\].*never measured"):
                    measure(holed)
            else:
                assert measure(holed) == value


def test_rows_may_end_at_the_diagonal():
    ragged, square = [[0.9], [0.5, 0.8]], [[0.9, None], [0.5, 0.8]]
    assert metrics.forgetting(ragged) == metrics.forgetting(square)
    assert metrics.incremental_accuracies(ragged) == metrics.incremental_accuracies(square)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.last_accuracy([]), r"\[T, T\]"),
        (lambda: metrics.last_accuracy([[0.5, 0.5]]), r"\[T, T\]"),
        (lambda: metrics.last_accuracy([[70.0]]), r"fractions in 0..1, got accuracy\[0, 0\] = 70"),
        (lambda: metrics.last_accuracy([[0.7]], weights=[1, 2]), "one value for each of 1 tasks"),
        (lambda: metrics.last_accuracy([[0.7]], weights=[0]), "> 0"),
        (lambda: metrics.last_accuracy([[0.7]], weights=[math.nan]), "> 0"),
        (lambda: metrics.intransigence([[0.7]], [math.nan]), r"joint\[0\]"),
        (lambda: metrics.forward_transfer([[0.7, 0.1], [0.7, 0.7]], [math.nan, 7]), r"baseline\[1\]"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_first_baseline_is_not_used():
    assert metrics.forward_transfer([[0.7, 0.5], [0.7, 0.7]], [math.nan, 0.25]) == 0.25
