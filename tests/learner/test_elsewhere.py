"""The learner in a program that does more: the state moves under it, torch is in another mode, names are odd."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sapwood.errors import StateError
from sapwood.learner import Learner
from sapwood.repair import remove_class

from .helpers import FAST, Folders, create

COLOURS = {"black": (0.0, 0.0, 0.0), "white": (1.0, 1.0, 1.0), "red": (1.0, 0.0, 0.0), "blue": (0.0, 0.0, 1.0)}


def flat(name: str) -> Tensor:
    return torch.tensor(COLOURS[name])[:, None, None].expand(3, 28, 28)


def taught(path: Path, *rounds: str, method: str = "ncm") -> Learner:
    learner = create(path, method)
    for names in rounds:
        learner.learn([(flat(name), name) for name in names.split()])
    return learner


def answers(learner: Learner) -> list[tuple[tuple[str, float], ...]]:
    return [answer.top for answer in learner.predict([flat(name) for name in COLOURS])]


@pytest.mark.parametrize("method", ["ncm", "ridge"])
def test_a_version_that_was_left_is_not_learned_on(tmp_path: Path, method: str) -> None:
    learner = taught(tmp_path / "state", "black white", method=method)
    before = learner.state.version.id
    learner.learn([(flat("red"), "red")])
    learner.state.rollback(before)
    assert answers(learner) == answers(Learner.open(tmp_path / "state"))
    learner.learn([(flat("blue"), "blue")])
    clean = answers(taught(tmp_path / "clean", "black white", "blue", method=method))
    assert answers(learner) == answers(Learner.open(tmp_path / "state")) == clean


def test_classes_can_be_removed_under_it(tmp_path: Path) -> None:
    learner = taught(tmp_path / "state", "black white red")
    assert learner.predict([flat("red")])[0].label == "red"
    remove_class(learner.state, "black")
    assert learner.classes_ == ("white", "red")
    assert answers(learner) == answers(Learner.open(tmp_path / "state"))


def test_another_process_loses_nothing(tmp_path: Path) -> None:
    learner = taught(tmp_path / "state", "black white")
    Learner.open(tmp_path / "state").learn([(flat("red"), "red")])
    with pytest.raises(StateError, match="open the state again"):
        learner.learn([(flat("blue"), "blue")])
    learner.state.refresh()
    learner.learn([(flat("blue"), "blue")])
    assert [top[0][0] for top in answers(Learner.open(tmp_path / "state"))] == list(COLOURS)


@pytest.mark.parametrize("method", ["ncm", "seq-lora", "full-finetune"])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_the_mode_of_the_caller_is_its_own(
    method: str, mode: type[AbstractContextManager[None]], tmp_path: Path, picture_folder: Folders
) -> None:
    # Twenty and more held-out pictures: the measure of strangeness is there and read.
    first = picture_folder(["ant", "bee"], 20, name="first")
    second = picture_folder(["cat", "dog"], 6, name="second", seed=1)
    with mode():
        create(tmp_path / "state", method).learn(first, training={**FAST, "validation": 0.5})
        opened = Learner.open(tmp_path / "state")
        inside = opened.predict(second)
    assert [answer.top for answer in Learner.open(tmp_path / "state").predict(second)] == [x.top for x in inside]
    opened.learn(second)
    opened.undo()
    with mode():
        assert Learner.open(tmp_path / "state").learn(second).classes_ == ("ant", "bee", "cat", "dog")


def test_a_tilde_is_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    create(Path("~/state"), "ncm", seed=np.int64(3))
    assert Learner.open("~/state").record["seed"] == 3
    assert (tmp_path / "state").is_dir()


def test_bytes_are_one_picture(tmp_path: Path, picture_folder: Folders) -> None:
    learner = taught(tmp_path / "state", "black white")
    file = next(picture_folder(["ant"], 1).rglob("*.png"))
    assert learner.predict(file.read_bytes())[0].top == learner.predict(file)[0].top
