"""The one module that the report and the server's page take a state's history from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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

    def pairs(names: str, count: int, seed: int = 0) -> list[tuple[Any, str]]:
        return [(shade(name, index, seed), name) for name in names for index in range(count)]

    learner.learn(pairs("ab", 6), task="two", test=pairs("ab", 3, 1))
    learner.learn(pairs("a", 4, 2), task="more of one", test=pairs("ab", 3, 1))
    learner.learn(pairs("cde", 6), task="three", test=pairs("abcde", 3, 1))
    return learner


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
    first, again, three = said["accuracy"][2]
    assert said["after_each"][2] == pytest.approx((2 * first + again + 3 * three) / 6)
    assert said["after_each"][0] == said["accuracy"][0][0]
    assert said["costs"]["stored, all files of this version"].endswith("B")
    assert all(isinstance(value, str) for value in said["costs"].values())


def test_no_fall_is_said_between_different_pictures(tmp_path: Path) -> None:
    from sapwood.cli.showing import summary
    from sapwood.learner import Learner

    learner = Learner.create(tmp_path / "state", backbone="random:dinov2-tiny", method="ncm")

    def pairs(names: str, count: int, seed: int = 0) -> list[tuple[Any, str]]:
        return [(shade(name, index, seed), name) for name in names for index in range(count)]

    def falls() -> tuple[float | None, float | None]:
        numbers = read_history(learner.record).numbers
        return numbers["forgetting"], numbers["backward transfer"]

    learner.learn(pairs("ab", 6), task="one", test=pairs("ab", 3, 1))
    learner.learn(pairs("cd", 6), task="two", test=[*pairs("dc", 5, 1), *reversed(pairs("ab", 3, 1))])
    assert None not in falls(), "the same pictures of the first classes, in another order"
    assert not read_history(learner.record).remark

    learner.evaluate(pairs("ab", 4, 3), record=True)
    assert falls() == (None, None)
    remark = read_history(learner.record).remark
    assert remark.endswith("not to be compared: one.")
    assert read_history(learner.record).numbers["average incremental accuracy"] is not None
    assert remark in summary(learner.state.version)
    assert gather(learner).before == {}

    learner.evaluate(pairs("abcd", 3, 1), record=True)
    assert None not in falls()
    assert not read_history(learner.record).remark


def test_of_a_state_that_learned_nothing(tmp_path: Path) -> None:
    from sapwood.learner import Learner

    learner = Learner.create(tmp_path / "empty", backbone="random:dinov2-tiny", method="ncm")
    said = read_history(learner.record).as_json()
    assert (said["rounds"], said["accuracy"], said["after_each"], said["costs"]) == ([], [], [], {})
    assert not any(said["numbers"].values())
