"""Cases that a careful reader found: each went wrong once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sapwood.adapters.base import Adapter
from sapwood.errors import ConfigError, DataError, Interrupted
from sapwood.learner import Learner
from sapwood.progress import Progress
from sapwood.registry import Registry

TRAINING = {"epochs": 2, "batch_size": 8, "precision": "fp32", "checkpoint_seconds": 1e-3}
Make = Callable[..., Path]


class Raising(Progress):
    """Stops the training after some steps, as a killed process would."""

    def __init__(self, steps: int) -> None:
        self.left, self.notes = steps, list[str]()

    def start(self, what: str, total: int, done: int = 0) -> None:
        self.what = what
        if what == "training":
            self.resumed_at = done

    def advance(self, units: int, **facts: float) -> None:
        if self.what == "training":
            self.left -= 1
            if self.left == 0:
                raise Interrupted("enough")

    def note(self, text: str) -> None:
        self.notes.append(text)


def started(path: Path, first: Path) -> Learner:
    learner = Learner.create(path, backbone="random:dinov2-tiny", method="seq-lora", settings={"training": TRAINING})
    return learner.learn(first, task="one")


def test_measuring_does_not_end_a_half_learned_round(tmp_path: Path, picture_folder: Make) -> None:
    first, second = picture_folder(["ant", "bee"], 12, name="a"), picture_folder(["cat", "dog"], 12, name="b")
    learner = started(tmp_path / "state", first)
    with pytest.raises(Interrupted):
        learner.learn(second, task="two", progress=Raising(3))
    assert learner.state.training.load() is not None
    learner.evaluate(first, record=True)
    listener = Raising(-1)
    learner.learn(second, task="two", progress=listener)
    assert learner.classes_ == ("ant", "bee", "cat", "dog")
    assert not any("already committed" in note for note in listener.notes)
    assert listener.resumed_at == 2  # from the checkpoint, not from the beginning


def test_a_round_that_was_committed_is_not_learned_twice(
    tmp_path: Path, picture_folder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = picture_folder(["ant", "bee"], 12, name="a"), picture_folder(["cat", "dog"], 12, name="b")
    learner = started(tmp_path / "state", first)
    with monkeypatch.context() as patch:  # what a kill between the commit and the clearing leaves behind
        patch.setattr("sapwood.state.training.TrainingFolder.clear", lambda self: None)
        learner.learn(second, task="two")
    learner.evaluate(first, record=True)
    again = Learner.open(tmp_path / "state").learn(second, task="two")
    assert [task["name"] for task in again.record["tasks"]] == ["one", "two"]


@pytest.mark.parametrize("name", ["", "a\nb", "a/b", "\x1b[31mred"])
def test_names_of_rounds_are_checked(tmp_path: Path, picture_folder: Make, name: str) -> None:
    learner = started(tmp_path / "state", picture_folder(["ant", "bee"], 6))
    with pytest.raises(DataError, match="name of a round"):
        learner.learn(picture_folder(["cat"], 3, name="b"), task=name)


def test_a_name_is_given_to_one_round(tmp_path: Path, picture_folder: Make) -> None:
    learner = started(tmp_path / "state", picture_folder(["ant", "bee"], 6))
    with pytest.raises(ConfigError, match="has learned a round 'one' already"):
        learner.learn(picture_folder(["cat"], 3, name="b"), task="one")


def test_test_pictures_among_the_training_pictures_are_told(tmp_path: Path, picture_folder: Make) -> None:
    folder = picture_folder(["ant", "bee"], 6)
    learner = Learner.create(tmp_path / "state", backbone="random:dinov2-tiny", method="ncm")
    listener = Raising(-1)
    learner.learn(folder, test=folder, progress=listener)
    assert any(note.startswith("12 of the test pictures are among the training") for note in listener.notes)


def test_the_recorded_revision_is_what_is_opened(
    tmp_path: Path, picture_folder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = started(tmp_path / "state", picture_folder(["ant", "bee"], 6))
    import sapwood.backbones.packed as opening

    asked: dict[str, Any] = {}
    create = opening.create_backbone

    def spy(name: str, image_size: int | None = None, **options: Any) -> Any:
        asked.update(options)
        return create(name, image_size, **options)

    monkeypatch.setattr(opening, "create_backbone", spy)
    _ = Learner.open(learner.state.path).network
    assert asked["revision"] == learner.record["backbone"]["revision"]


def test_the_backbone_of_a_new_state_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sapwood.backbones.packed as opening

    learner = Learner.create(tmp_path / "state", backbone="random:dinov2-tiny", image_size=28)
    with monkeypatch.context() as patch:
        patch.setattr(opening, "create_backbone", None)
        assert learner.network.backbone.info.image_size == 28
    pixels, again = torch.rand(1, 3, 28, 28), Learner.open(tmp_path / "state")
    assert torch.equal(again.network.backbone(pixels).pooled, learner.network.backbone(pixels).pooled)


def test_of_classes_that_are_one_the_first_is_named(tmp_path: Path) -> None:
    learner = Learner.create(tmp_path / "state", backbone="random:dinov2-tiny", image_size=28, method="ncm")
    same = torch.zeros(3, 28, 28)
    learner.learn([(same, f"c{index}") for index in range(12)])
    for top in (1, 2, 5, 12):
        assert learner.predict([same], top=top)[0].label == "c0"
    assert learner.evaluate([(same, "c0")]).accuracy == 1


def test_a_broken_outside_package_is_told_and_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    broken = EntryPoint("broken", "no_such_package:Thing", "sapwood.adapters")
    monkeypatch.setattr("sapwood.registry.entry_points", lambda group: [broken])
    registry: Registry[type[Adapter]] = Registry("adapter", "adapters")
    with pytest.warns(UserWarning, match="adapter 'broken' .*no_such_package"):
        assert list(registry) == []


def test_infinite_rates_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.lr must be finite, got inf"):
        Learner.create(tmp_path / "s", backbone="random:dinov2-tiny", settings={"training": {"lr": float("inf")}})
    assert not (tmp_path / "s").exists()
