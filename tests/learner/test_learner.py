"""The learner as its users meet it: rounds, what is measured, what is refused, and what never leaks."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sapwood.backbones import create_backbone
from sapwood.feeds import PictureFeed
from sapwood.learner import Learner

from .helpers import FAST, TINY, Folders, create, same, tensors

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


@pytest.mark.parametrize("method", ["seq-lora", "slca"])
def test_a_reopened_learner_leaves_the_old_one_as_it_is(method: str, tmp_path: Path, picture_folder: Folders) -> None:
    first, second = picture_folder(["ant", "bee"], 6, name="first"), picture_folder(["cat"], 6, name="second")
    writer = create(tmp_path / "state", method).learn(first, training=FAST)
    old = Learner.open(tmp_path / "state")
    answers = old.predict(second)
    writer.learn(second)
    new = old.reopened()
    assert new.predict(second) == writer.predict(second) != answers
    assert old.predict(second) == answers
    mine, other = (next(each.network.backbone.parameters()).data_ptr() for each in (new, old))
    assert (mine == other) == (method == "seq-lora")  # weights that train are each version's own
    past = weakref.ref(old.network)
    del old
    gc.collect()
    assert past() is None


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


# --- rows of the head


def test_a_round_leaves_the_rows_of_others_and_what_its_own_have_in_common(
    tmp_path: Path, picture_folder: Folders
) -> None:
    """Also under a distillation, and where a softmax among three classes would move their sum."""
    learner = create(tmp_path / "state", "lora+lwf")
    weights = []
    for names in (["ant", "bee"], ["cow", "dog", "eel"]):
        learner.learn(picture_folder(names, 6, name=names[0]), training={**FAST, "epochs": 4, "head_lr": 0.05})
        head: Any = learner.network.head
        weights.append(head.classifier.weight.detach().clone())
    first, both = weights
    assert torch.equal(both[:2], first)
    for own in (both[:2], both[2:]):
        assert own.norm(dim=1).min() > 0.1  # each has learned
        assert own.sum(0).norm() < 0.03  # three new rows have a hundredth each
