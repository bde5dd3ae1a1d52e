"""What a learner refuses, and that nothing is touched then; what it says of a round before it begins."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sapwood.costs import estimate_round
from sapwood.errors import ConfigError, DataError, StateError, UnknownName
from sapwood.learner import Learner
from sapwood.preparation import round_config
from sapwood.progress import Progress

from .helpers import FAST, TINY, Folders, Notes, all_bytes, create


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ({"method": "seq-lorra"}, UnknownName, "Did you mean 'seq-lora'"),
        ({"backbone": "random:dinov2-huge"}, Exception, "random:dinov2-tiny"),
        ({"head": "liner"}, UnknownName, "Did you mean 'linear'"),
        ({"image_size": 30}, ConfigError, "must be a multiple of .* patch of 14 px, got 30; try 28"),
        ({"settings": {"adapter": {"rnk": 3}}}, ConfigError, "Did you mean 'adapter.rank'"),
        ({"settings": {"adapter": {"rank": 0}}}, ConfigError, "adapter.rank must be >= 1"),
        ({"settings": {"objective": {"scope": "all"}}}, ConfigError, "objective.scope must be one of own, seen"),
        ({"settings": {"training": {"precision": "fp8"}}}, ConfigError, "training.precision must be one of"),
        ({"settings": {"training": {"epochs": math.inf}}}, ConfigError, "training.epochs must be of type int"),
        ({"settings": {"adapter": {"alpha": math.inf}}}, ConfigError, "adapter.alpha must be finite"),
        ({"settings": {"adapter": {"targets": 5}}}, ConfigError, "adapter.targets must be a list, got 5"),
        ({"kind": "detection"}, UnknownName, "Known kinds: classification, segmentation"),
        ({"device": "gpu"}, ConfigError, "device 'gpu': Expected one of cpu, cuda"),
    ],
)
def test_creating_with_a_fault_makes_nothing(
    what: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    options = {"backbone": TINY, "method": "seq-lora", "image_size": 28} | what
    with pytest.raises(error, match=message) as caught:
        Learner.create(tmp_path / "state", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "state").exists()


def test_refusals_leave_the_state_as_it_was(tmp_path: Path, picture_folder: Folders) -> None:
    learner = create(tmp_path / "state")
    with pytest.raises(ConfigError, match="has learned nothing yet"):
        learner.predict([np.zeros((28, 28, 3), np.uint8)])
    learner.learn(picture_folder(["ant", "bee"], 6, name="first"), training=FAST)
    before = all_bytes(tmp_path / "state")
    broken = picture_folder(["cat"], 6, name="broken")
    (broken / "cat" / "000.png").write_bytes(b"")
    refused: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: learner.learn(tmp_path / "nowhere"), DataError, "nowhere"),
        (lambda: learner.learn(broken), DataError, "000.png"),
        (lambda: learner.learn(picture_folder(["Ant"], 2, name="case")), DataError, "Ant"),
        (
            lambda: learner.learn(
                picture_folder(["cat"], 2, name="fine"), test=picture_folder(["ant", "yak"], 2, name="unknown")
            ),
            DataError,
            "unknown class 'yak' in the test pictures; known: ant, bee, cat",
        ),
        (lambda: learner.learn(tmp_path / "fine", training={"epochs": 0}), ConfigError, "epochs must be >= 1"),
        (lambda: learner.learn(tmp_path / "fine", training={"epoch": 2}), ConfigError, "training.epochs"),
        (lambda: learner.evaluate(tmp_path / "unknown"), DataError, "yak"),
        (lambda: learner.predict([]), DataError, "no pictures"),
        (lambda: Learner.open(tmp_path / "first"), StateError, "first"),
    ]
    for call, error, message in refused:
        with pytest.raises(error, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert all_bytes(tmp_path / "state") == before
    learner.learn(broken, skip_bad=True)
    assert learner.record["tasks"][-1]["images"] == 5


def test_a_state_wants_the_weights_it_was_made_with(tmp_path: Path, picture_folder: Folders) -> None:
    learner = create(tmp_path / "state").learn(picture_folder(["ant", "bee"], 4), training=FAST)
    record = {**learner.record, "backbone": {**learner.record["backbone"], "sha256": "0" * 64}}
    learner.state.commit(record, {}, "other weights")
    with pytest.raises(StateError, match="put the original weights back"):
        Learner.open(tmp_path / "state").predict(tmp_path / "pictures")


def test_notes_for_few_pictures_and_few_classes(tmp_path: Path, picture_folder: Folders) -> None:
    notes = Notes()
    learner = create(tmp_path / "state")
    learner.learn(picture_folder({"ant": 1}, name="one"), training=FAST, progress=notes)
    assert any("only one class is known so far" in line for line in notes.lines)
    assert any("class 'ant' has a single picture" in line for line in notes.lines)
    assert any(line.startswith("estimate: about ") for line in notes.lines)
    notes.lines.clear()
    learner.learn(picture_folder({"bee": 3}, name="two"), progress=notes)
    assert not any("single picture" in line or "only one class is known" in line for line in notes.lines)


def test_the_estimate_counts_what_trains(tmp_path: Path, picture_folder: Folders) -> None:
    data = picture_folder(["ant", "bee"], 6)
    found = {}
    for method in ("ncm", "seq-lora", "full-finetune"):
        learner = create(tmp_path / method, method)
        store = learner.kind.load(learner.kind.read(data), 28, Progress(), skip_bad=False)
        round_ = learner.kind.prepare(store, (), 0, "first", 0, 0.0, 28)
        found[method] = estimate_round(learner.network, round_config(learner.record, FAST), round_)
    assert found["ncm"].memory < found["seq-lora"].memory < found["full-finetune"].memory
    assert all(estimate.seconds > 0 for estimate in found.values())
    assert str(found["ncm"]).startswith("about ")
