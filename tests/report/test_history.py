"""The one module that the report and the server's page take a state's history from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sapwood.cli.showing import summary
from sapwood.repair import rename_class
from sapwood.report import gather
from sapwood.report.history import read_history


def shade(name: str, index: int, seed: int) -> np.ndarray:
    random = np.random.default_rng([index, seed])
    grey = 40 * (1 + "abcde".index(name)) + random.normal(0, 5, (28, 28, 3))
    return grey.clip(0, 255).round().astype(np.uint8)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from sapwood.learner import Learner

    learner = Learner.create(tmp_path_factory.mktemp("history") / "state", backbone="random:dinov2-tiny", method="ncm")

    learner.learn(pairs("ab", 6), task="two", test=pairs("ab", 3, 1))
    learner.learn(pairs("a", 4, 2), task="more of one", test=pairs("ab", 3, 1))
    learner.learn(pairs("cde", 6), task="three", test=pairs("abcde", 3, 1))
    return learner


def test_a_class_that_came_twice_counts_once(state: Any) -> None:
    last = state.record["tasks"][2]
    per_class = {"a": 0.5, "b": 0.25, "c": 1.0, "d": 1.0, "e": 1.0}
    tasks = [*state.record["tasks"][:2], {**last, "measured": {**last["measured"], "per_class": per_class}}]
    record = {**state.record, "tasks": tasks, "accuracy": [*state.record["accuracy"][:2], [0.375, 0.5, 1.0]]}
    found = read_history(record)
    assert found.after_each == (1.0, 1.0, 0.75)
    assert found.numbers["last accuracy"] == 0.75
    assert found.numbers["average incremental accuracy"] == pytest.approx(2.75 / 3)
    gone = [*tasks[:2], {key: value for key, value in last.items() if key != "measured"}]
    assert read_history({**record, "tasks": gone}).numbers["last accuracy"] is None, "it cannot be told from the cells"


def test_the_report_says_the_same(state: Any) -> None:
    found, report = read_history(state.record), gather(state)
    assert (found.tasks, found.measure, found.numbers) == (report.tasks, report.measure, report.numbers)
    assert found.costs == report.costs
    assert found.as_json()["accuracy"] == [list(row) for row in report.accuracy]
    assert found.as_json()["after_each"] == list(report.after_each or ())


def test_as_json(state: Any) -> None:
    said = json.loads(json.dumps(read_history(state.record).as_json(), allow_nan=False))
    assert [round_["name"] for round_ in said["rounds"]] == ["two", "more of one", "three"]
    assert [round_["classes"] for round_ in said["rounds"]] == [["a", "b"], ["a"], ["c", "d", "e"]]
    assert [round_["images"] for round_ in said["rounds"]] == [12, 4, 18]
    assert [len(row) for row in said["accuracy"]] == [3, 3, 3]
    assert said["accuracy"][0][1:] == [None, None]
    per_class = state.record["tasks"][2]["measured"]["per_class"]
    assert list(per_class) == list("abcde")
    assert said["after_each"][2] == pytest.approx(sum(per_class.values()) / 5), "each class counts once"
    assert said["numbers"]["last accuracy"] == said["after_each"][2] == state.evaluate(pairs("abcde", 3, 1)).accuracy
    assert said["numbers"]["average incremental accuracy"] == pytest.approx(sum(said["after_each"]) / 3)
    assert said["after_each"][0] == said["accuracy"][0][0]
    assert said["costs"]["stored, all files of this version"].endswith("B")
    assert all(isinstance(value, str) for value in said["costs"].values())


def pairs(names: str, count: int, seed: int = 0) -> list[tuple[Any, str]]:
    return [(shade(name, index, seed), name) for name in names for index in range(count)]


@pytest.fixture
def two_rounds(tmp_path: Path) -> Any:
    from sapwood.learner import Learner

    learner = Learner.create(tmp_path / "state", backbone="random:dinov2-tiny", method="ncm")
    learner.learn(pairs("ab", 6), task="one", test=pairs("ab", 3, 1))
    return learner.learn(pairs("cd", 6), task="two", test=[*pairs("dc", 5, 1), *reversed(pairs("ab", 3, 1))])


def falls(learner: Any) -> tuple[float | None, float | None]:
    numbers = read_history(learner.record).numbers
    return numbers["forgetting"], numbers["backward transfer"]


def test_no_fall_is_said_between_different_pictures(two_rounds: Any) -> None:
    assert None not in falls(two_rounds), "the same pictures of the first classes, in another order"
    found = read_history(two_rounds.record)
    assert (found.remark, found.breaks) == ("", ())

    two_rounds.evaluate(pairs("ab", 4, 3), record=True)
    assert falls(two_rounds) == (None, None)
    found = read_history(two_rounds.record)
    assert found.remark.endswith("not to be compared: one.")
    assert found.breaks == ((1, 0),)
    assert found.numbers["average incremental accuracy"] is not None
    assert found.remark in summary(two_rounds.state.version)
    assert gather(two_rounds).before == {}

    two_rounds.evaluate(pairs("abcd", 3, 1), record=True)
    assert None not in falls(two_rounds)
    assert not read_history(two_rounds.record).remark


def test_the_same_pictures_with_other_labels_are_others(two_rounds: Any) -> None:
    swapped = [(picture, {"a": "b", "b": "a"}[name]) for picture, name in pairs("ab", 3, 1)]
    two_rounds.evaluate([*swapped, *pairs("cd", 5, 1)], record=True)
    assert falls(two_rounds) == (None, None)
    assert read_history(two_rounds.record).remark


def test_another_name_for_a_class_changes_nothing(two_rounds: Any) -> None:
    before = falls(two_rounds)
    rename_class(two_rounds.state, "a", "alder")
    renamed = two_rounds.open(two_rounds.state.path)
    again = [(picture, "alder" if name == "a" else name) for picture, name in pairs("ab", 3, 1) + pairs("cd", 5, 1)]
    renamed.evaluate(again, record=True)
    assert None not in falls(renamed)
    assert falls(renamed) == before


def test_what_was_not_measured_is_not_called_other_pictures(tmp_path: Path) -> None:
    from sapwood.learner import Learner

    learner = Learner.create(tmp_path / "state", backbone="random:dinov2-tiny", method="ncm")
    learner.learn(pairs("ab", 6), task="one", test=pairs("ab", 3, 1))
    learner.learn(pairs("cd", 6), task="two", test=pairs("cd", 3, 1))
    found = read_history(learner.record)
    assert (found.remark, found.breaks) == ("", ())
    learner.evaluate(pairs("ab", 3, 1), record=True)
    assert None not in falls(learner)


def test_measuring_some_classes_again_keeps_what_the_others_had(two_rounds: Any) -> None:
    before = two_rounds.record["tasks"][-1]["measured"]
    measured = two_rounds.evaluate(pairs("c", 4, 3), record=True)
    after = two_rounds.record["tasks"][-1]["measured"]
    assert after["per_class"] == {**before["per_class"], "c": measured.per_class["c"]}
    assert after["counts"] == {**before["counts"], "c": 4}
    assert list(after["per_class"]) == list("abcd")
    assert after["accuracy"] is None, "nothing was measured over all of them"
    assert gather(two_rounds).before.keys() == {"a", "b"}


def test_a_state_that_an_earlier_release_went_on_with(two_rounds: Any) -> None:
    record = dict(two_rounds.record)
    assert read_history({**record, "measured_on": record["measured_on"][:1]}).numbers == read_history(record).numbers


def test_of_a_state_that_learned_nothing(tmp_path: Path) -> None:
    from sapwood.learner import Learner

    learner = Learner.create(tmp_path / "empty", backbone="random:dinov2-tiny", method="ncm")
    said = read_history(learner.record).as_json()
    assert (said["rounds"], said["accuracy"], said["after_each"], said["costs"]) == ([], [], [], {})
    assert not any(said["numbers"].values())
