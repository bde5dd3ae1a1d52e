"""Mending a state: what is gone is gone, what was wrong was never so, and what may still be there is said."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sapwood import history
from sapwood.errors import ConfigError
from sapwood.learner import Learner
from sapwood.repair import kept_bytes, merge_classes, remove_class
from sapwood.state import State

from .helpers import FAST, METHODS, Folders, assert_alike, learn, methods, numbers, other, rows


@methods
def test_a_removed_class_was_never_learned(
    method: str, settings: dict[str, Any], tmp_path: Path, rounds: list[Path], picture_folder: Folders
) -> None:
    learner = learn(tmp_path / "state", method, settings, *rounds, test=rounds[0])
    before = learner.state.version
    assert learner.accuracy_[0][0] is not None
    done = remove_class(State.open(tmp_path / "state"), "bee")
    without = other(rounds, lambda folder: shutil.rmtree(folder / "bee"))
    learn(tmp_path / "never", method, settings, *without)
    assert_alike(tmp_path / "state", tmp_path / "never")

    record = done.version.record
    assert record["note"] == "remove bee"
    assert [(entry["id"], entry["name"]) for entry in record["classes"]] == [(0, "ant"), (2, "cow"), (3, "dog")]
    first, second = record["tasks"]
    assert (first["classes"], first["annotated"], first["images"]) == (["ant", "cow"], ["ant", "cow"], 14)
    assert (second["classes"], second["annotated"], second["images"]) == (["dog"], ["dog"], 4)
    assert (first["validation_images"], first["validation_accuracy"]) == (1, None)
    assert record["accuracy"] == [[None], [None, None]]
    assert "measured" not in second
    assert "1" not in done.remarks[0].split()
    assert "--keep 1` removes them" in done.remarks[-1]

    state = State.open(tmp_path / "state")
    assert {row["label"] for row in rows(state, 0)} == {0, 2}
    gone = {row["sha256"] for row in rows(State(state.path, before), 0) if row["label"] == 1}
    assert gone.isdisjoint(row["sha256"] for index in range(2) for row in rows(state, index))
    assert not [name for name in record["files"] if name.startswith(first["folder"]) and "head" in name]
    assert kept_bytes(state) < sum(e["bytes"] for n, e in before.record["files"].items() if "features" in n)

    again = Learner.open(tmp_path / "state").learn(picture_folder({"bee": 2, "eel": 2}, name="more", seed=5))
    assert [entry["id"] for entry in again.record["classes"]] == [0, 2, 3, 4, 5]
    assert {row["label"] for row in rows(again.state, 2)} == {4, 5}
    assert again.classes_ == ("ant", "cow", "dog", "bee", "eel")
    again.undo()
    again.undo()
    assert again.classes_ == ("ant", "bee", "cow", "dog")
    assert again.record["files"] == before.record["files"]


def test_the_adapter_of_the_first_round_may_still_hold_a_class(tmp_path: Path, rounds: list[Path]) -> None:
    learn(tmp_path / "state", *METHODS[3], *rounds)
    state = State.open(tmp_path / "state")
    assert kept_bytes(state) > 0
    kept = numbers(tmp_path / "state")
    done = remove_class(state, "dog")
    assert not any("adapter was trained" in remark for remark in done.remarks)  # the second round left it alone
    left = numbers(tmp_path / "state")
    dogs = kept["count"][3]
    assert left["count"].tolist() == kept["count"][:3].tolist()
    assert dogs == 4
    done = remove_class(state, "bee")
    assert any("adapter was trained on pictures of 'bee' in round 'round 1'" in remark for remark in done.remarks)
    torch.testing.assert_close(numbers(tmp_path / "state")["total"], kept["total"][[0, 2]], atol=1e-8, rtol=0)


def test_sums_of_features_that_moved_still_hold_a_class(tmp_path: Path, rounds: list[Path]) -> None:
    learn(tmp_path / "state", "seq-lora+ridge", {"head": {"strength": 1e-3}}, *rounds)
    state = State.open(tmp_path / "state")
    assert kept_bytes(state) == 0
    done = remove_class(state, "bee")
    said = " ".join(done.remarks)
    assert "sums that all classes share still hold 'bee': the features have moved" in said
    assert "in round 'round 1', 'round 2'" in said
    assert [each.label for each in Learner.open(tmp_path / "state").predict([rounds[0] / "bee" / "000.png"])] != ["bee"]


def test_features_of_another_network_are_not_kept(tmp_path: Path, rounds: list[Path], picture_folder: Folders) -> None:
    learner = learn(tmp_path / "state", *METHODS[3], *rounds)
    assert sum("features" in name for name in learner.record["files"]) == 2
    learner.learn(picture_folder({"eel": 3}, name="third"), training={"adapt": "always"})
    assert not [name for name in learner.record["files"] if "features" in name]


def test_without_kept_features_the_pictures_are_asked_for(
    tmp_path: Path, rounds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MOST_FEATURE_BYTES", 4 * 32 * 10)  # the second round's six fit
    learn(tmp_path / "state", *METHODS[1], *rounds)
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    state = State.open(tmp_path / "state")
    assert sum("features" in name for name in state.version.record["files"]) == 1
    before = state.version.id
    with pytest.raises(ConfigError, match=r"12 of 14 pictures of 'bee' have left no features .* --inexact"):
        remove_class(state, "bee")
    some = shutil.copytree(rounds[0] / "bee", tmp_path / "some")
    (some / "000.png").unlink()
    with pytest.raises(ConfigError, match="1 of 14 pictures of 'bee' are not among the --pictures"):
        remove_class(state, "bee", pictures=some)
    assert State.open(tmp_path / "state").version.id == before

    done = remove_class(state, "bee", pictures=rounds[0] / "bee")
    assert not any("still hold 'bee':" in remark and "sums" in remark for remark in done.remarks)
    without = other(rounds, lambda folder: shutil.rmtree(folder / "bee"))
    learn(tmp_path / "never", *METHODS[1], *without)
    mine, theirs = numbers(tmp_path / "state"), numbers(tmp_path / "never")
    torch.testing.assert_close(mine["gram"], theirs["gram"], atol=1e-4, rtol=1e-5)  # computed in other batches
    assert torch.equal(mine["count"], theirs["count"])

    done = remove_class(State.open(tmp_path / "copy"), "bee", inexact=True)
    assert "12 of its pictures were not there to be taken out" in done.remarks[0]


@pytest.mark.parametrize("precisions", [("fp32", "bf16"), ("bf16", "fp32")], ids="-".join)
def test_pictures_leave_in_the_precision_that_they_came_in(
    precisions: tuple[str, str], tmp_path: Path, rounds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MOST_FEATURE_BYTES", 0)
    pictures = sorted(file for data in rounds for file in (data / "bee").iterdir())
    without = other(rounds, lambda folder: shutil.rmtree(folder / "bee"))
    for name, folders in (("state", rounds), ("never", without)):
        settings = {"head": {"strength": 1.0}}
        learner = Learner.create(
            tmp_path / name, backbone="random:dinov2-tiny", method="ridge", image_size=28, settings=settings
        )
        for data, precision in zip(folders, precisions, strict=True):
            learner.learn(data, training={**FAST, "precision": precision})
    remove_class(State.open(tmp_path / "state"), "bee", pictures=pictures)
    mine, theirs = numbers(tmp_path / "state"), numbers(tmp_path / "never")
    for name in ("gram", "cross", "known"):
        assert (mine[name] - theirs[name]).abs().max() < 1e-5 * theirs[name].abs().max(), name


def test_a_state_without_a_class_learns_on(tmp_path: Path, rounds: list[Path], picture_folder: Folders) -> None:
    learn(tmp_path / "state", "lora+ewc", {}, *rounds)
    picture = [rounds[0] / "cow" / "000.png"]
    done = remove_class(State.open(tmp_path / "state"), "bee")
    assert "rows of the other classes" in done.remarks[0]
    assert any("adapter was trained" in remark for remark in done.remarks)
    after = Learner.open(tmp_path / "state")
    _, objective = after._load()
    anchors: Any = objective
    assert anchors.classes == 3
    assert anchors.anchor["head.classifier.weight"].shape[0] == 3
    after.learn(picture_folder({"eel": 3, "ant": 2}, name="third", seed=7))
    assert after.classes_ == ("ant", "cow", "dog", "eel")
    assert len(after.predict(picture)[0].top) == 4


@pytest.mark.parametrize("method", ["color", "dual-lora"])
def test_no_picture_is_taken_for_one_of_a_round_that_lost_its_classes(
    method: str, tmp_path: Path, picture_folder: Folders
) -> None:
    first, second = (picture_folder(names, 3, name=names[0], seed=1) for names in (["ant", "bee"], ["cow", "dog"]))
    learn(tmp_path / "state", method, {}, first, second)
    for name in ("ant", "bee"):
        remove_class(State.open(tmp_path / "state"), name)
    learner = Learner.open(tmp_path / "state")
    found = learner.predict([first, second])
    assert {each.label for each in found} <= {"cow", "dog"}
    assert all(0 <= score <= 1 for each in found for _, score in each.top)
    assert [task["parts"]["adapter"]["meta"]["classes"] for task in learner.record["tasks"]] == [[], [0, 1]]
    learner.learn(picture_folder(["eel"], 3, name="third"))
    merge_classes(learner.state, "eel", "cow")
    learner = Learner.open(tmp_path / "state")
    assert [task["parts"]["adapter"]["meta"]["classes"] for task in learner.record["tasks"]] == [[], [0, 1], [0]]
    assert {each.label for each in learner.predict([first, second])} <= {"cow", "dog"}
