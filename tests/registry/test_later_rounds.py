"""Every recipe in rounds that are not as the first: with little, with known classes, at a real size."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sapwood.costs import declared_bytes
from sapwood.learner import Learner
from sapwood.methods import METHODS

from .helpers import (
    FAST,
    Rounds,
    answers,
    computed,
    create,
    every_method,
    feature_bytes,
    logits,
    same_bits,
    views,
)

Give = Callable[[str, str], Learner]
GiveRounds = Callable[[str], Rounds]

_LITTLE: dict[tuple[str, str], Learner] = {}


@pytest.fixture
def little(rounds: GiveRounds, tmp_path: Path) -> Give:
    """A learner that has learned a round of one class, then one with a single picture of each class."""

    def give(method: str, kind: str) -> Learner:
        if (method, kind) not in _LITTLE:
            folders = rounds(kind)
            learner = create(tmp_path / "little", method, kind)
            learner.learn(folders.single, training={**FAST, "epochs": 1})
            if kind == "classification":
                assert {answer.label for answer in learner.predict(folders.single)} == {"ant"}
            else:
                assert learner.classes_ == ("background", "ant")
            _LITTLE[method, kind] = learner.learn(folders.little)
        return _LITTLE[method, kind]

    return give


@every_method
def test_little_is_enough(method: str, kind: str, little: Give, rounds: GiveRounds) -> None:
    learner, images = little(method, kind), views(rounds(kind).little, kind)
    assert computed(learner, logits(learner, images))
    assert same_bits(logits(Learner.open(learner.state.path), images), logits(learner, images))


@every_method
def test_known_classes_come_again(method: str, kind: str, little: Give, rounds: GiveRounds, tmp_path: Path) -> None:
    """More pictures of a known class together with a new class, then of known classes alone."""
    known = little(method, kind).classes_
    shutil.copytree(little(method, kind).state.path, tmp_path / "state")
    folders, one_epoch = rounds(kind), {"epochs": 1}
    learner = Learner.open(tmp_path / "state").learn(folders.mixed, task="mixed", training=one_epoch)
    assert learner.classes_ == (*known, "eel")
    assert learner.record["tasks"][-1]["classes"] == ["eel"]
    assert learner.record["tasks"][-1]["annotated"] == ["bee", "eel"]
    learner.learn(folders.first, task="more")
    assert learner.classes_ == (*known, "eel")
    assert learner.record["tasks"][-1]["classes"] == []
    opened = Learner.open(learner.state.path)
    assert answers(opened, folders.other) == answers(learner, folders.other)
    if kind == "classification":
        answered = opened.predict(folders.other, top=4)
        assert all(sum(score for _, score in answer.top) == pytest.approx(1, abs=1e-5) for answer in answered)


@pytest.mark.parametrize("method", ["seq-lora", "lora+ewc", "ncm", "ranpac", "full-finetune", "clora+mib"])
def test_files_of_a_real_size_hold_what_listings_declare(
    method: str, picture_folder: Callable[..., Path], mask_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """On a ViT-S/14: the number that ``sapwood methods`` prints, and at most a twentieth more on disk."""
    kind = METHODS[method].kind
    learner = Learner.create(tmp_path / "state", backbone="random:dinov2-s14", method=method, image_size=28)
    if kind == "segmentation":
        data = mask_folder(["ant", "bee", "cat", "dog"], 2)
    else:
        data = picture_folder([f"class {index}" for index in range(10)], 1)
    learner.learn(data, training={**FAST, "epochs": 1})
    (task,) = learner.record["tasks"]
    files = {name: entry["bytes"] for name, entry in learner.record["files"].items() if name.endswith("safetensors")}
    declared = declared_bytes(METHODS[method], len(learner.classes_))
    assert task["declared_bytes"] == declared + feature_bytes(learner)
    assert task["declared_bytes"] < sum(files.values()) <= 1.05 * task["declared_bytes"]
    if method == "clora+mib":
        assert sum(files.values()) <= 1.05 * 4 * task["trainable_parameters"]
