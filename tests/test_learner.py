"""The learner as its users meet it: rounds, what is measured, what is refused, and what never leaks."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sapwood.backbones import create_backbone
from sapwood.costs import estimate_round
from sapwood.errors import ConfigError, DataError, StateError, UnknownName
from sapwood.feeds import PictureFeed
from sapwood.learner import Learner
from sapwood.preparation import round_config
from sapwood.progress import Progress

pytestmark = pytest.mark.usefixtures("settled")

Folders = Callable[..., Path]
TINY = "random:dinov2-tiny"
FAST = {"epochs": 2, "batch_size": 8, "precision": "fp32"}


def create(path: Path, method: str = "seq-lora", **more: Any) -> Learner:
    return Learner.create(path, backbone=TINY, method=method, image_size=28, **more)


def tensors(learner: Learner) -> dict[str, Tensor]:
    folder = learner.record["tasks"][-1]["folder"]
    names = [name for name in learner.record["files"] if name.startswith(folder) and name.endswith(".safetensors")]
    return {f"{name}:{key}": value for name in names for key, value in learner.state.tensors(name).items()}


def same(one: Learner, two: Learner) -> bool:
    mine, other = tensors(one), tensors(two)
    return mine.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in mine.items())


class Notes(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("lock")
    }


# --- rounds and the record


def test_the_record_tells_what_happened(tmp_path: Path, picture_folder: Folders) -> None:
    learner = create(tmp_path / "state", seed=3)
    assert learner.classes_ == ()
    learner.learn(picture_folder({"bee": 12, "ant": 3}, name="first"), task="insects", training=FAST)
    learner.learn(picture_folder({"ant": 2, "cat": 12}, name="second", seed=1))
    assert learner.classes_ == ("ant", "bee", "cat")
    first, second = Learner.open(tmp_path / "state").record["tasks"]
    assert (first["name"], first["classes"], first["images"], first["validation_images"]) == (
        "insects",
        ["ant", "bee"],
        15,
        1,
    )
    assert (second["name"], second["classes"], second["annotated"]) == ("task-2", ["cat"], ["ant", "cat"])
    lora = sum(2 * 16 * 32 for _ in range(2 * 2))
    assert first["trainable_parameters"] == lora + 2 * 33
    assert second["trainable_parameters"] == lora + 3 * 33
    assert first["seed"] == 3
    assert first["seconds"] > 0
    head = learner.state.tensors(f"{first['folder']}/head.safetensors")
    kept = sum(value.numel() * value.element_size() for name, value in head.items() if name.startswith("known."))
    assert first["declared_bytes"] == 4 * first["trainable_parameters"] + kept
    assert learner.accuracy_ == [[first["validation_accuracy"]], [None, second["validation_accuracy"]]]
    assert learner.record["accuracy_on"] == ["validation", "validation"]
    assert learner.record["settings"]["training"]["epochs"] == 2  # later rounds inherit
    rows = [json.loads(row) for row in learner.state.text(f"{first['folder']}/pictures.jsonl").splitlines()]
    assert sorted(row["split"] for row in rows) == ["train"] * 14 + ["validation"]
    assert set(rows[0]) == {"sha256", "label", "split"}
    assert not (tmp_path / "state" / "training").exists()


def test_measured_on_test_pictures(tmp_path: Path, picture_folder: Folders) -> None:
    test = picture_folder(["ant", "bee"], 4, name="test", seed=9)
    learner = create(tmp_path / "state", "ncm")
    learner.learn(picture_folder(["ant", "bee"], 8, name="first"), test=test)
    learner.learn(picture_folder(["cat"], 8, name="second"), test=test)
    assert learner.record["accuracy_on"] == ["test", "test"]
    assert learner.accuracy_[1][1] is None  # no picture of a cat among the test pictures
    measured = learner.evaluate(test)
    assert measured.accuracy == measured.per_task["task-1"] == learner.accuracy_[1][0]
    answers = learner.predict(test)
    right = [answer.label == Path(answer.path).parent.name for answer in answers]
    assert measured.accuracy == sum(right) / len(right)
    assert np.array(measured.confusion).sum() == measured.images == 8


def test_the_first_rounds_folder_may_vanish(tmp_path: Path, picture_folder: Folders) -> None:
    first, second = picture_folder(["ant", "bee"], 8, name="first"), picture_folder(["cat"], 8, name="second")
    kept = create(tmp_path / "kept", "seq-lora+ridge").learn(first, training=FAST).learn(second)
    lost = create(tmp_path / "lost", "seq-lora+ridge").learn(first, training=FAST)
    shutil.rmtree(first)
    lost = Learner.open(tmp_path / "lost").learn(second)
    assert same(kept, lost)


def test_undo_goes_back_and_the_round_can_be_learned_anew(tmp_path: Path, picture_folder: Folders) -> None:
    first, second = picture_folder(["ant", "bee"], 6, name="first"), picture_folder(["cat"], 6, name="second")
    learner = create(tmp_path / "state").learn(first, training=FAST)
    answers = learner.predict(second)
    learner.learn(second)
    kept = tensors(learner)
    assert learner.predict(second) != answers
    learner.undo()
    assert learner.classes_ == ("ant", "bee")
    assert learner.predict(second) == answers
    learner.learn(second)
    again = tensors(learner)
    (old,), (new,) = ({name.rpartition("/")[0] for name in found} for found in (kept, again))
    assert old != new  # versions are immutable: the undone round's files stay
    assert len(kept) == len(again)
    assert all(torch.equal(again[name.replace(old, new, 1)], value) for name, value in kept.items())


# --- precision and merging


@pytest.mark.parametrize("method", ["seq-lora", "slca", "ncm"])
def test_opened_computes_as_it_learned(method: str, tmp_path: Path, picture_folder: Folders) -> None:
    first, second = picture_folder(["ant", "bee"], 8, name="first"), picture_folder(["cat"], 8, name="second")
    learner = create(tmp_path / "state", method).learn(first, training={**FAST, "precision": "bf16"})
    answers = learner.predict(second)
    opened = Learner.open(tmp_path / "state")
    assert opened.network.precision == "bf16"
    assert opened.predict(second) == answers
    # Another precision begins from the exact weights, not from the rounded ones.
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    learner.learn(second, training={"precision": "fp32"})
    copied = Learner.open(tmp_path / "copy").learn(second, training={"precision": "fp32"})
    assert same(learner, copied)
    assert learner.network.precision == "fp32"
    exact = create_backbone(TINY, 28).state_dict().values()
    assert {tensor.dtype for tensor in learner.network.backbone.state_dict().values()} == {
        tensor.dtype for tensor in exact
    }


@pytest.mark.parametrize("method", ["seq-lora", "lora+ranpac"])
def test_learning_goes_on_after_merging(method: str, tmp_path: Path, picture_folder: Folders) -> None:
    first, second = picture_folder(["ant", "bee"], 8, name="first"), picture_folder(["cat"], 8, name="second")
    settings = {"head": {"projection": 64}} if method == "lora+ranpac" else {}
    apart = create(tmp_path / "apart", method, settings=settings).learn(first, training=FAST).learn(second)
    merged = create(tmp_path / "merged", method, settings=settings).learn(first, training=FAST).merge().learn(second)
    assert same(apart, merged)


# --- nothing leaks


@pytest.mark.parametrize("method", ["seq-lora", "lora+ewc", "seq-lora+slca", "seq-lora+ridge", "ncm"])
def test_test_pictures_choose_nothing(
    method: str, tmp_path: Path, picture_folder: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same tensors with and without; and what the losses and the fit saw holds none of them."""
    first, second = picture_folder(["ant", "bee"], 12, name="first"), picture_folder(["cat"], 12, name="second")
    test = picture_folder(["ant", "bee"], 7, name="test", seed=5)
    without = create(tmp_path / "without", method).learn(first, training=FAST).learn(second)

    seen: dict[tuple[int, bool], set[str]] = {}
    forward = PictureFeed.forward

    def looking(feed: PictureFeed, model: Any, teacher: Any, batch: Any) -> Any:
        key = feed.views.task, torch.is_grad_enabled()
        seen.setdefault(key, set()).update(feed.store.sha256[index] for index in batch.indices)
        return forward(feed, model, teacher, batch)

    monkeypatch.setattr(PictureFeed, "forward", looking)
    with_test = create(tmp_path / "with", method).learn(first, training=FAST, test=test).learn(second, test=test)
    assert same(without, with_test)
    assert [task["validation_accuracy"] for task in without.record["tasks"]] == [
        task["validation_accuracy"] for task in with_test.record["tasks"]
    ]
    for index, task in enumerate(with_test.record["tasks"]):
        rows = [json.loads(row) for row in with_test.state.text(f"{task['folder']}/pictures.jsonl").splitlines()]
        split = {name: {row["sha256"] for row in rows if row["split"] == name} for name in ("train", "validation")}
        assert len(split["validation"]) == task["validation_images"] > 0
        assert seen.get((index, True), split["train"]) == split["train"]
        assert seen.get((index, False), split["validation"]) == split["validation"]
    assert len(seen) == (0 if method == "ncm" else 4)


def test_validation_pictures_train_no_gradient_head(tmp_path: Path, picture_folder: Folders) -> None:
    """Other validation pictures, same training pictures: the same trained tensors."""
    first = picture_folder(["ant", "bee"], 10, name="first")
    whole = create(tmp_path / "whole").learn(first, training=FAST)
    rows = [
        json.loads(row) for row in whole.state.text(f"{whole.record['tasks'][0]['folder']}/pictures.jsonl").splitlines()
    ]
    held = {row["sha256"] for row in rows if row["split"] == "validation"}
    assert len(held) == 2
    changed = 0
    for path in first.rglob("*.png"):
        if hashlib.sha256(path.read_bytes()).hexdigest() in held:
            Image.fromarray(np.zeros((32, 32, 3), np.uint8) + 7 * (changed + 1)).save(path)
            changed += 1
    assert changed == 2
    other = create(tmp_path / "other").learn(first, training=FAST)
    trained = [
        {name: value for name, value in tensors(each).items() if ":known." not in name} for each in (whole, other)
    ]
    assert trained[0].keys() == trained[1].keys()
    assert all(torch.equal(value, trained[1][name]) for name, value in trained[0].items())
    assert not same(whole, other)  # what is known, and where that ends, they do decide
    one, two = (learner.network.head.temperature for learner in (whole, other))
    assert one != two  # that is what they are for


# --- what is refused, and that nothing is touched


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
    assert not any("single" in line or "only one" in line for line in notes.lines)


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
