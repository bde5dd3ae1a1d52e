"""A round of masks that is killed goes on and ends with the same tensors, bit for bit: real processes, real signals."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from sapwood.errors import ConfigError
from sapwood.learner import Learner
from sapwood.state import State

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes here are forked")

Learning = Callable[..., tuple[int, list[dict[str, Any]]]]  # the fixture ``learning``

FIRST = {"lr": 5e-3, "epochs": 2, "batch_size": 4, "precision": "fp32", "checkpoint_seconds": 1e-3}
STEPS = 8  # of the second round: 16 pictures, two held out, in 4 batches, twice
# Methods with settings of their own: batch normalisation, and branches whose draws depend on the forwards so far.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "parallel": ("clora+mib", {"head": {"branches": "parallel", "stem": "per_task"}}),
    "parallel aspp": (
        "clora+mib",
        {"head": {"branches": "parallel", "branch_start": "preserve", "decoder": "aspp"}},
    ),
}
CLASSES = ("background", "road", "car", "tree", "sign")


class Started:
    """States that learned a first round of masks, and their second round undisturbed: made once for every method."""

    def __init__(self, learning: Learning, folder: Path, make: Callable[..., Path]) -> None:
        self.learning, self.folder = learning, folder
        self.first = make(["road", "car"], 12, also=["tree"], name="first", size=(34, 48))
        self.second = make(["tree", "sign"], 16, also=["road"], name="second", size=(34, 48))
        self.whole: dict[str, Path] = {}
        self.before: dict[str, list[np.ndarray]] = {}

    def __call__(self, method: str, path: Path) -> Path:
        """A copy of the state after round 1, at ``path``; ``undisturbed`` then compares round 2."""
        begun, whole = self.folder / f"{method}-begun", self.folder / method
        if method not in self.whole:
            recipe, settings = VARIANTS.get(method, (method, {}))
            options = {"kind": "segmentation", "image_size": (28, 42), "settings": settings}
            learner = Learner.create(begun, backbone="random:dinov2-tiny", method=recipe, **options)  # type: ignore[arg-type]
            learner.learn(self.first, task="first", training=FIRST)
            self.before[method] = drawn(begun, self.second)
            shutil.copytree(begun, whole)
            assert self.learning(whole, self.second, task="second")[0] == 0
            self.whole[method] = whole
        shutil.copytree(begun, path)
        return path

    def as_before(self, method: str, path: Path) -> None:
        """Fail unless the state opens, knows the first round only, and draws as it did after it."""
        record = State.open(path).version.record
        assert [task["name"] for task in record["tasks"]] == ["first"]
        assert [entry["name"] for entry in record["classes"]] == list(CLASSES[:3])
        found = drawn(path, self.second)
        assert all(np.array_equal(mask, was) for mask, was in zip(found, self.before[method], strict=True))
        assert len(np.unique(found)) > 1  # else any state would draw so

    def undisturbed(self, method: str, path: Path) -> None:
        """Fail unless the state holds what the undisturbed one holds: tensors, classes, what was measured."""
        one, two = (State.open(each).version.record for each in (self.whole[method], path))
        compared = changed = 0
        for mine in sorted(self.whole[method].glob("tasks/0002-second/*.safetensors")):
            assert mine.read_bytes() == (path / mine.relative_to(self.whole[method])).read_bytes(), mine.name
            earlier = path / "tasks" / "0001-first" / mine.name
            compared += len(load_file(mine))
            changed += not earlier.exists() or earlier.read_bytes() != mine.read_bytes()
        assert compared > 2
        assert changed  # the round did something
        assert sorted(one["files"]) == sorted(two["files"])
        assert [entry["name"] for entry in two["classes"]] == list(CLASSES)
        for key in ("classes", "accuracy", "settings"):
            assert one[key] == two[key]
        assert not (path / "training").exists()
        pairs = zip(drawn(self.whole[method], self.second), drawn(path, self.second), strict=True)
        assert all(np.array_equal(mine, other) for mine, other in pairs)


def drawn(state: Path, data: Path) -> list[np.ndarray]:
    return [answer.mask for answer in Learner.open(state).predict(data / "images")]


_STARTED: list[Started] = []


@pytest.fixture
def started(learning: Learning, tmp_path: Path, mask_folder: Callable[..., Path]) -> Started:
    if not _STARTED:
        _STARTED.append(Started(learning, tmp_path, mask_folder))
    return _STARTED[0]


MOMENTS = [
    ("clora+mib", "reading pictures 3"),
    ("clora+mib", "training 1"),
    ("clora+mib", "training 5"),  # the first of the second pass
    ("clora+mib", f"training {STEPS}"),  # the last step: its checkpoint is not written yet
    ("clora+mib", "before commit"),
    ("clora-reinit+mib", "training 3"),  # the past is folded into the weights
    ("full+mib", "training 3"),  # the teacher is a copy
    ("parallel", "training 3"),
    ("parallel", f"training {STEPS}"),
    ("parallel aspp", "training 5"),
]


@pytest.mark.parametrize(("method", "moment"), MOMENTS, ids=[f"{method}, {moment}" for method, moment in MOMENTS])
def test_killed_rounds_go_on(method: str, moment: str, learning: Learning, started: Started, tmp_path: Path) -> None:
    state = started(method, tmp_path / "state")
    assert learning(state, started.second, task="second", die=moment)[0] == -signal.SIGKILL
    started.as_before(method, state)
    status, said = learning(state, started.second, task="second")
    assert status == 0
    (training,) = (facts for facts in said if facts.get("doing") == "training")
    assert training["total"] == STEPS
    if moment.startswith("training"):
        assert training["done"] == int(moment.split()[1]) - 1  # from the last checkpoint, not from the start
    else:
        assert training["done"] == (0 if moment.startswith("reading") else STEPS)
    started.undisturbed(method, state)


def test_killed_again_and_again(learning: Learning, started: Started, tmp_path: Path) -> None:
    state = started("clora+mib", tmp_path / "state")
    for _ in range(3):
        assert learning(state, started.second, task="second", die="training 3")[0] == -signal.SIGKILL
    started.as_before("clora+mib", state)
    assert learning(state, started.second, task="second")[0] == 0
    started.undisturbed("clora+mib", state)


@pytest.mark.parametrize("delay", [0.0, 0.04])
def test_killed_from_outside_at_no_chosen_moment(
    delay: float, learning: Learning, started: Started, tmp_path: Path
) -> None:
    state = started("clora+mib", tmp_path / "state")

    def kill(said: dict[str, Any]) -> int | None:
        if said.get("step") != 2:
            return None
        time.sleep(delay)
        return signal.SIGKILL

    status, _ = learning(state, started.second, kill, task="second")
    if status:  # else it was faster
        assert status == -signal.SIGKILL
        if len(State.open(state).version.record["tasks"]) == 1:
            started.as_before("clora+mib", state)
    assert learning(state, started.second, task="second")[0] == 0
    started.undisturbed("clora+mib", state)


def test_asked_to_stop_a_checkpoint_comes_first(learning: Learning, started: Started, tmp_path: Path) -> None:
    state = started("clora+mib", tmp_path / "state")

    seldom = {"checkpoint_seconds": 1e6}  # only the signal makes one
    options = {"die": "training 2", "signal": signal.SIGTERM, "training": seldom}
    status, said = learning(state, started.second, task="second", **options)
    assert status == 130
    assert said[-2]["error"] == "Interrupted"
    assert "the same command goes on from the last checkpoint" in said[-2]["message"]
    assert len(list((state / "training").glob("checkpoint-*.safetensors"))) == 1
    started.as_before("clora+mib", state)
    status, said = learning(state, started.second, task="second")
    assert status == 0
    assert next(facts["done"] for facts in said if facts.get("doing") == "training") == 2
    started.undisturbed("clora+mib", state)


def test_other_masks_are_another_round(learning: Learning, started: Started, tmp_path: Path) -> None:
    """The pictures are the same, but what they mean is not: nothing goes on with it unasked."""
    state = started("clora+mib", tmp_path / "state")
    assert learning(state, started.second, task="second", die="training 5")[0] == -signal.SIGKILL
    checkpoint = {path.name: path.read_bytes() for path in (state / "training").iterdir()}
    drawn_over = shutil.copytree(started.second, tmp_path / "drawn over")
    mask = drawn_over / "masks" / "003.png"
    values = np.asarray(Image.open(mask)).copy()
    values[0, 0] = 1 if values[0, 0] != 1 else 0
    Image.fromarray(values).save(mask)
    renamed = shutil.copytree(started.second, tmp_path / "renamed")
    (renamed / "classes.json").write_text('{"background": 0, "tree": 2, "sign": 1}')
    others: list[tuple[Path, dict[str, Any], str]] = [
        (drawn_over, {}, "other pictures"),
        (renamed, {}, "other classes"),
        (started.second, {"unlabelled": "ignore"}, "other pictures"),
    ]
    for data, options, told in others:
        with pytest.raises(ConfigError, match=rf"{told}.*--restart") as caught:
            Learner.open(state).learn(data, task="second", **options)
        assert "\n" not in str(caught.value)
        assert {path.name: path.read_bytes() for path in (state / "training").iterdir()} == checkpoint
    assert learning(state, started.second, task="second")[0] == 0
    started.undisturbed("clora+mib", state)
