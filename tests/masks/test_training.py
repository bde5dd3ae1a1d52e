"""Rounds of masks as training sees them: the targets, the teacher and what it costs, and how a round begins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sapwood import rounds
from sapwood.learner import Learner
from sapwood.network import Network, Teacher

from .helpers import FAST, Folders, create, same


class Seen:
    """Network, teacher and targets at the start of the last round's training."""

    network: Network
    teacher: Teacher | None
    targets: set[int]
    own: dict[str, int]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Looks on while rounds train."""
    found, train = Seen(), rounds.train

    def look(network: Network, objective: Any, feed: Any, *rest: Any, teacher: Teacher | None, **more: Any) -> Any:
        found.network, found.teacher = network, teacher
        found.targets = {int(value) for batch in feed.batches(0, 0) for value in batch.targets.unique()}
        found.own = {
            "student": storage(network),
            "both": storage(network, *([] if teacher is None else [teacher.network, teacher.adapter, teacher.head])),
        }
        if teacher is not None:
            found.said = compare(network, teacher, feed)  # type: ignore[attr-defined]
        return train(network, objective, feed, *rest, teacher=teacher, **more)

    monkeypatch.setattr(rounds, "train", look)
    return found


def storage(*modules: nn.Module) -> int:
    """Bytes of all distinct tensors of some modules, the adapters' plain attributes (what they folded) included."""
    held = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    for module in modules:
        held += [layer.changed for layer in getattr(module, "adapted", []) if layer.changed is not None]
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}.values())


@torch.no_grad()
def compare(network: Network, teacher: Teacher, feed: Any) -> tuple[Tensor, Tensor]:
    """Probabilities [B, K, H, W] of student and teacher."""
    images = next(iter(feed.batches(0, 0))).images
    return network(images).logits.softmax(1), teacher(images).logits.softmax(1)


def test_the_record_tells_what_happened(tmp_path: Path, mask_folder: Folders, seen: Seen) -> None:
    first = mask_folder(["road", "car"], 12, name="first")
    second = mask_folder(["tree"], 4, also=["road"], name="second")
    learner = create(tmp_path / "state", seed=3)
    assert learner.classes_ == ()
    learner.learn(first, task="street", training=FAST)
    assert seen.targets == {0, 1, 2}
    learner.learn(second)
    assert seen.targets == {0, 3}  # the roads of the second round are background
    assert learner.classes_ == ("background", "road", "car", "tree")
    one, two = Learner.open(tmp_path / "state").record["tasks"]
    assert (one["name"], one["classes"], one["annotated"]) == ("street", ["road", "car"], ["road", "car"])
    assert (two["name"], two["classes"], two["annotated"]) == ("task-2", ["tree"], ["tree"])
    assert (one["images"], one["validation_images"], two["images"], two["validation_images"]) == (12, 1, 4, 0)
    lora, decoder = 2 * 2 * 2 * 16 * 32, 32 * 32 + 32
    assert one["trainable_parameters"] == lora + decoder + 3 * 33
    assert two["trainable_parameters"] == lora + decoder + 4 * 33
    assert one["declared_bytes"] == 4 * one["trainable_parameters"]
    assert learner.accuracy_ == [[one["validation_accuracy"]], [None, None]]
    assert 0 <= one["validation_accuracy"] <= 1
    assert learner.record["accuracy_on"] == ["validation", "validation"]
    assert learner.record["kind"] == "segmentation"
    rows = [json.loads(row) for row in learner.state.text(f"{one['folder']}/pictures.jsonl").splitlines()]
    assert sorted(row["split"] for row in rows) == ["train"] * 11 + ["validation"]
    assert set(rows[0]) == {"sha256", "picture", "split"}


def test_more_pictures_of_a_known_class_and_a_new_one(tmp_path: Path, mask_folder: Folders, seen: Seen) -> None:
    learner = create(tmp_path / "state").learn(mask_folder(["road", "car"], 4, name="first"), training=FAST)
    learner.learn(mask_folder(["tree", "car"], 4, also=["road"], name="second"))
    assert seen.targets == {0, 2, 3}
    (task,) = learner.record["tasks"][1:]
    assert (task["classes"], task["annotated"]) == (["tree"], ["car", "tree"])
    learner.learn(mask_folder(["road"], 4, name="third"))
    assert seen.targets == {0, 1}
    assert learner.classes_ == ("background", "road", "car", "tree")
    assert learner.record["tasks"][2]["classes"] == []
    assert learner.accuracy_[2][2] is None


def test_the_background_may_have_any_value_and_spelling(tmp_path: Path, mask_folder: Folders, seen: Seen) -> None:
    folder = mask_folder(["road", "car"], 4)
    swapped = shutil.copytree(folder, tmp_path / "swapped")
    for path in (swapped / "masks").iterdir():
        values = np.asarray(Image.open(path))
        Image.fromarray(np.array([5, 0, 2], np.uint8)[values]).save(path)
    (swapped / "classes.json").write_text('{"road": 0, "_Background_": 5, "car": 2}')
    plain = {**FAST, "augment": False}
    one = create(tmp_path / "one").learn(folder, training=plain)
    two = create(tmp_path / "two").learn(swapped, training=plain)
    assert one.classes_ == two.classes_ == ("background", "road", "car")
    assert same(one, two)
    assert seen.targets == {0, 1, 2}


def test_what_is_not_labelled_may_be_ignored(tmp_path: Path, mask_folder: Folders, seen: Seen) -> None:
    first, second = mask_folder(["road"], 4, name="first"), mask_folder(["car"], 4, also=["road"], name="second")
    learner = create(tmp_path / "state").learn(first, training=FAST)
    shutil.copytree(tmp_path / "state", tmp_path / "other")
    learner.learn(second, unlabelled="ignore")
    assert seen.targets == {2, 255}
    assert not same(learner, Learner.open(tmp_path / "other").learn(second))
    assert seen.targets == {0, 2}


@pytest.mark.parametrize(
    ("method", "copies"),
    [
        ("clora+mib", False),
        ("clora+lwf", False),
        ("clora+ilt", False),
        ("clora-reinit+mib", False),
        ("frozen+mib", False),
        ("full+mib", True),
    ],
)
def test_there_is_never_a_second_backbone(
    method: str, copies: bool, tmp_path: Path, mask_folder: Folders, seen: Seen
) -> None:
    learner = create(tmp_path / "state", method).learn(mask_folder(["road"], 4, name="first"), training=FAST)
    assert seen.teacher is None
    learner.learn(mask_folder(["car"], 4, name="second"))
    assert seen.teacher is not None
    backbone = storage(learner.network.backbone)
    clone = storage(seen.teacher.adapter) + storage(seen.teacher.head)
    extra = seen.own["both"] - seen.own["student"]
    assert seen.teacher.network_is_copy == copies
    if copies:
        assert extra > backbone
    else:
        assert extra == clone < backbone / 2
        assert seen.teacher.network is seen.network
    assert not any(parameter.requires_grad for parameter in seen.teacher.adapter.parameters())
    assert not any(parameter.requires_grad for parameter in seen.teacher.head.parameters())


@pytest.mark.parametrize("method", ["clora+mib", "clora-reinit+mib", "frozen+mib", "full+mib"])
@pytest.mark.parametrize("new", [["car"], ["car", "tree"]])
def test_a_round_of_mib_starts_with_the_teachers_probabilities(
    method: str, new: list[str], tmp_path: Path, mask_folder: Folders, seen: Seen
) -> None:
    """What the teacher calls background is spread evenly over background and new classes; the rest stays."""
    strong = {**FAST, "lr": 1e-2}
    learner = create(tmp_path / "state", method).learn(mask_folder(["road", "sign"], 4, name="first"), training=strong)
    for number, classes in enumerate((new, ["bike"])):  # also in a third round, where the bias is lowered again
        learner.learn(mask_folder(classes, 4, name=f"later-{number}"))
        student, teacher = seen.said  # type: ignore[attr-defined]
        old = teacher.shape[1]
        assert student.shape[1] == old + len(classes)
        torch.testing.assert_close(student[:, 1:old], teacher[:, 1:], atol=1e-6, rtol=1e-5)
        share = teacher[:, :1] / (len(classes) + 1)
        torch.testing.assert_close(student[:, :1], share, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(student[:, old:], share.expand(-1, len(classes), -1, -1), atol=1e-6, rtol=1e-5)
        assert teacher.std(0).max() > 1e-4  # else anything would do


def test_other_objectives_start_elsewhere(tmp_path: Path, mask_folder: Folders, seen: Seen) -> None:
    learner = create(tmp_path / "state", "clora+lwf").learn(mask_folder(["road"], 4, name="first"), training=FAST)
    learner.learn(mask_folder(["car"], 4, name="second"))
    student, teacher = seen.said  # type: ignore[attr-defined]
    assert (student[:, 1:2] - teacher[:, 1:]).abs().max() > 1e-3
