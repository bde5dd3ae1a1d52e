"""Heads trained by gradients: after a repair their rows are re-tuned, on what the head keeps and what was given."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sapwood import repair_correction
from sapwood.learner import Learner
from sapwood.repair import Repair, merge_classes, relabel, remove_class
from sapwood.state import State

from .helpers import Folders

CLASSES = ("ant", "bee", "cow", "dog")
TRAINING = {"epochs": 4, "lr": 5e-3, "batch_size": 8, "precision": "fp32"}
# The Gaussians that alignment draws from stay where their round left them: features must not move far.
OTHERWISE = {"seq-lora": {"epochs": 8}, "seq-lora+slca": {"epochs": 8, "lr": 3e-4}}
OTHERWISE["color"] = {"epochs": 8, "head_lr": 1e-3}
METHODS: list[tuple[str, str | None]] = [("seq-lora", None), ("lora+ewc", "cosine"), ("seq-lora+slca", None)]
methods = pytest.mark.parametrize("taught", METHODS, ids=[name for name, _ in METHODS], indirect=True)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Path]:
    return {}


@pytest.fixture
def pictures(picture_folder: Folders) -> Path:
    """Pictures of all classes that are never learned."""
    return picture_folder(CLASSES, 8, name="tests", seed=9)


@pytest.fixture
def wrong(picture_folder: Folders) -> list[Path]:
    """Four pictures of ants, which the first round is told are bees."""
    return sorted((picture_folder(["ant"], 4, name="wrong", seed=5) / "ant").iterdir())


@pytest.fixture
def taught(
    request: pytest.FixtureRequest,
    kept: dict[Any, Path],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    picture_folder: Folders,
    wrong: list[Path],
) -> Path:
    """A copy of a state that has learned two rounds, a wrong label in the first."""
    method, head = request.param
    if request.param not in kept:
        first, second = (picture_folder(CLASSES[n : n + 2], 12, name=CLASSES[n], seed=1) for n in (0, 2))
        for file in wrong:
            shutil.copy(file, first / "bee" / f"wrong-{file.name}")
        path = tmp_path_factory.mktemp("taught") / "state"
        learner = Learner.create(path, backbone="random:dinov2-tiny", method=method, head=head, image_size=28)
        for name, data in (("one", first), ("two", second)):
            learner.learn(data, task=name, training=TRAINING | OTHERWISE.get(method, {}))
        kept[request.param] = path
    return shutil.copytree(kept[request.param], tmp_path / "state")


def called(state: Path, given: Any) -> list[str]:
    return [each.label for each in Learner.open(state).predict(given)]


def share(state: Path, pictures: Path, names: tuple[str, ...] = CLASSES) -> dict[str, float]:
    return {name: called(state, pictures / name).count(name) / 8 for name in names}


def head_of(state: Path) -> Any:
    return Learner.open(state).network.head.requires_grad_(False)


def repaired(state: Path, name: str, call: Callable[[State], Repair]) -> tuple[Path, Repair]:
    """A copy of a state, repaired, and what was said."""
    copy = shutil.copytree(state, state.parent / name)
    return copy, call(State.open(copy))


def unhurt(before: dict[str, float], after: dict[str, float]) -> bool:
    """No class by more than a picture of its eight, all together by none."""
    worse = max(before[name] - after[name] for name in after)
    return worse <= 1 / 8 and sum(after.values()) >= sum(before[name] for name in after)


@methods
def test_relabelled_pictures_are_called_so_and_other_classes_do_not_suffer(
    taught: Path, wrong: list[Path], pictures: Path
) -> None:
    before, old = share(taught, pictures), head_of(taught)
    state, done = repaired(taught, "relabelled", lambda state: relabel(state, wrong, "ant"))
    assert called(state, wrong) == ["ant"] * 4
    assert unhurt(before, share(state, pictures))
    head = head_of(state)
    assert not torch.equal(head.classifier.weight, old.classifier.weight)
    assert (head.calibrated, head.told) == (False, 0)  # the next round speaks for itself
    assert head.known.count.tolist() == [16, 12, 12, 12]
    assert "of 4 given, 4 are called 'ant' now" in done.remarks[0]
    assert "rows of the classes were re-tuned on features drawn" in done.remarks[1]
    said = " ".join(done.remarks)
    assert "not exactly as if they had been learned so" in said
    assert "adapter was trained with the old labels of these pictures in round 'one', and may still hold" in said
    version = done.version.record
    if version["parts"]["objective"] == "ewc":  # the next round holds on to what the rows are now
        anchor = State.open(state).tensors(f"{version['tasks'][-1]['folder']}/objective.safetensors")
        assert torch.equal(anchor["anchor.head.classifier.weight"], head.classifier.weight)

    again, same = repaired(taught, "again", lambda state: relabel(state, wrong, "ant"))
    mine, other = head.state()[0], head_of(again).state()[0]
    assert mine.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in mine.items())
    assert done.remarks == same.remarks
    learner = Learner.open(state)
    learner.undo()
    assert torch.equal(head_of(state).classifier.weight, old.classifier.weight)


@methods
def test_no_class_is_hurt_by_one_that_goes_or_joins_another(taught: Path, pictures: Path) -> None:
    before, old = share(taught, pictures), head_of(taught).classifier.weight
    state, done = repaired(taught, "removed", lambda state: remove_class(state, "bee"))
    assert unhurt(before, share(state, pictures, ("ant", "cow", "dog")))
    rows = head_of(state).classifier.weight
    assert (rows - old[[0, 2, 3]]).abs().amax(1).min() > 1e-4  # every one of them has moved
    assert any("features drawn from the Gaussians" in remark for remark in done.remarks)
    again, _ = repaired(taught, "again", lambda state: remove_class(state, "bee"))
    assert torch.equal(head_of(again).classifier.weight, rows)

    state, done = repaired(taught, "merged", lambda state: merge_classes(state, "dog", "cow"))
    assert unhurt(before, share(state, pictures, ("ant", "bee")))
    joined = [*(pictures / "cow").iterdir(), *(pictures / "dog").iterdir()]
    assert called(state, joined).count("cow") == 16
    assert any("trained on 'dog' as a class of its own in round 'two'" in remark for remark in done.remarks)


@pytest.mark.parametrize("taught", [("color", None)], ids=["color"], indirect=True)
def test_a_picture_may_move_to_a_class_of_another_expert(taught: Path, pictures: Path, wrong: list[Path]) -> None:
    before = share(taught, pictures)
    state, done = repaired(taught, "moved", lambda state: relabel(state, wrong, "cow"))
    assert called(state, wrong) == ["cow"] * 4
    assert "of 4 given, 4 are called 'cow' now, 0 before" in done.remarks[0]
    assert [task["parts"]["adapter"]["meta"]["classes"] for task in done.version.record["tasks"]] == [[0, 1, 2], [2, 3]]
    assert unhurt(before, share(state, pictures, ("bee", "cow", "dog")))  # what looks like an ant is a cow now


def test_what_a_frozen_backbone_showed_is_counted_exactly(
    tmp_path: Path, picture_folder: Folders, wrong: list[Path]
) -> None:
    def learned(name: str, label: str) -> Path:
        data = picture_folder(CLASSES, 4, name=f"data {name}")
        for file in wrong:
            shutil.copy(file, data / label / f"wrong-{file.name}")
        settings = {"head": {"align": "gaussian"}}
        learner = Learner.create(
            tmp_path / name, backbone="random:dinov2-tiny", method="none+finetune", image_size=28, settings=settings
        )
        learner.learn(data, training=TRAINING)
        return tmp_path / name

    state = learned("state", "bee")
    done = relabel(State.open(state), wrong, "ant")
    assert called(state, wrong) == ["ant"] * 4
    assert not any("exactly" in remark or "adapter" in remark for remark in done.remarks)
    mine, right = head_of(state).state()[0], head_of(learned("right", "ant")).state()[0]
    for name in ("known.total", "known.count", "known.gram", "mean", "covariance", "count"):
        torch.testing.assert_close(mine[name], right[name], atol=1e-3, rtol=1e-4)  # computed in other batches


def test_without_anything_to_draw_from_nothing_is_corrected(tmp_path: Path) -> None:
    """A state of the first format, whose head keeps its rows and nothing else."""
    fixture = Path(__file__).parents[1] / "state" / "fixtures" / "format1" / "seq-lora"
    old = shutil.copytree(fixture, tmp_path / "old")
    weight = head_of(old).classifier.weight
    done = remove_class(State.open(old), Learner.open(old).classes_[0])
    assert any("nothing was corrected: this state keeps nothing of how its classes look" in r for r in done.remarks)
    assert torch.equal(head_of(old).classifier.weight, weight[1:])


@pytest.mark.parametrize("taught", METHODS[:1], ids=["seq-lora"], indirect=True)
def test_rows_that_would_be_worse_stay(taught: Path, wrong: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(head: Any, *_: Any) -> None:
        head.classifier.weight.data.neg_()

    monkeypatch.setattr(repair_correction, "_tune", spoil)
    old = head_of(taught)
    state, done = repaired(taught, "spoilt", lambda state: remove_class(state, "ant"))
    assert any("nothing was corrected: rows re-tuned" in remark for remark in done.remarks)
    assert torch.equal(head_of(state).classifier.weight, old.classifier.weight[1:])
    assert (head_of(state).temperature, head_of(state).calibrated) == (old.temperature, old.calibrated)


def test_sums_of_features_that_moved_follow_by_those_of_today(tmp_path: Path, picture_folder: Folders) -> None:
    first, second = (picture_folder(CLASSES[n : n + 2], 6, name=CLASSES[n], seed=1) for n in (0, 2))
    wrong = sorted((first / "bee").iterdir())[:3]
    learner = Learner.create(tmp_path / "state", backbone="random:dinov2-tiny", method="seq-lora+ridge", image_size=28)
    for data in (first, second):
        learner.learn(data, training={**TRAINING, "epochs": 2, "lr": 1e-3})
    before: Any = learner.network.head
    done = relabel(learner.state, wrong, "cow")
    assert "of 3 given, 3 are called 'cow' now, 0 before" in done.remarks[0]
    assert "sums are not exactly what they would be" in done.remarks[1]
    assert "adapter was trained with the old labels of these pictures in round 'task-1'" in done.remarks[2]
    after: Any = head_of(tmp_path / "state")
    assert after.count.tolist() == [6, 3, 9, 6]
    torch.testing.assert_close(after.gram, before.gram)  # the same under any label
    torch.testing.assert_close(after.cross.sum(1), before.cross.sum(1))
    assert called(tmp_path / "state", wrong) == ["cow"] * 3
