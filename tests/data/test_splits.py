"""The held-out part, and the order of classes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapwood.data.splits import class_order, task_sizes, validation_split
from sapwood.errors import ConfigError

labels_lists = st.lists(st.sampled_from("abcde"), max_size=120)


@given(labels=labels_lists, fraction=st.floats(0, 0.99), seed=st.integers(0, 10**6))
def test_split_is_stratified_and_complete(labels: list[str], fraction: float, seed: int) -> None:
    train, held = validation_split(labels, fraction, seed)
    assert sorted(train + held) == list(range(len(labels)))
    assert (train, held) == (sorted(train), sorted(held))
    all_of, held_of = Counter(labels), Counter(labels[index] for index in held)
    for label, count in all_of.items():
        if count < 10 or fraction == 0:
            assert held_of[label] == 0
        else:
            assert 1 <= held_of[label] < count
            assert abs(held_of[label] - fraction * count) <= 1


def test_split_obeys_the_seed_and_leaves_other_classes_alone() -> None:
    dogs = ["dog"] * 40
    assert validation_split(dogs, 0.25, 1) == validation_split(dogs, 0.25, 1)
    assert validation_split(dogs, 0.25, 1) != validation_split(dogs, 0.25, 2)
    assert validation_split(dogs + ["cat"] * 40, 0.25, 1)[1][:10] == validation_split(dogs, 0.25, 1)[1]


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(ConfigError, match="validation must be in"):
        validation_split(["a"] * 20, fraction, 0)


def test_class_order_is_the_convention_and_leaves_the_global_state_alone() -> None:
    np.random.seed(1993)
    expected = np.random.permutation(10).tolist()
    after = np.random.random()
    np.random.seed(1993)
    np.random.permutation(10)
    assert class_order(10, 1993) == expected
    assert np.random.random() == after
    assert class_order(3, None) == [0, 1, 2]


@given(st.integers(1, 60), st.data())
def test_sizes_of_tasks(classes: int, data: st.DataObject) -> None:
    tasks = data.draw(st.integers(1, classes))
    sizes = task_sizes(classes, tasks)
    assert (len(sizes), sum(sizes), min(sizes) > 0) == (tasks, classes, True)
    assert sorted(sizes, reverse=True) == list(sizes)
    assert len(set(sizes[:-1])) <= 1 or max(sizes) - min(sizes) == 1
    if classes % tasks == 0:
        assert sizes == (classes // tasks,) * tasks


def test_no_task_without_a_class() -> None:
    for tasks in (0, -1, 4):
        with pytest.raises(ConfigError, match=f"3 classes make 1 to 3 tasks, got tasks={tasks}"):
            task_sizes(3, tasks)
    assert task_sizes(196, 10) == (20,) * 9 + (16,)


def test_small_classes_give_where_they_are_asked_to() -> None:
    labels = ["a"] * 3 + ["b"] * 2 + ["c"]
    assert validation_split(labels, 0.2, 0)[1] == []
    kept, held = validation_split(labels, 0.2, 0, smallest=2)
    assert [labels[index] for index in held] == ["a", "b"]
    assert sorted(kept + held) == list(range(6))
