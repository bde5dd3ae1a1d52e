"""States that learned a first round, made once for all tests here."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from sapwood.learner import Learner
from sapwood.state import State

Learning = Callable[..., tuple[int, list[dict[str, Any]]]]  # the fixture ``learning``

FIRST = {"lr": 5e-4, "epochs": 2, "batch_size": 8, "precision": "fp32", "checkpoint_seconds": 1e-3}


class Started:
    """States that learned a first round, and their second round undisturbed: made once for every method."""

    def __init__(self, learning: Learning, folder: Path, make: Callable[..., Path]) -> None:
        self.learning, self.folder = learning, folder
        self.first, self.second = make(["ant", "bee"], 20, name="first"), make(["cat", "dog"], 24, name="second")
        self.whole: dict[str, Path] = {}

    def __call__(self, method: str, path: Path, **training: Any) -> Path:
        """A copy of the state after round 1, at ``path``; ``undisturbed`` then compares round 2."""
        begun = self.folder / f"{method}-begun"
        if method not in self.whole:
            Learner.create(begun, backbone="random:dinov2-tiny", method=method, image_size=28)
            assert self.learning(begun, self.first, task="first", training=FIRST)[0] == 0
            shutil.copytree(begun, self.folder / method)
            assert self.learning(self.folder / method, self.second, task="second")[0] == 0
            self.whole[method] = self.folder / method
        shutil.copytree(begun, path)
        return path

    def undisturbed(self, method: str, path: Path) -> None:
        """Fail unless the state holds what the undisturbed one holds: files of the round, classes, accuracy."""
        one, two = (State.open(each).version.record for each in (self.whole[method], path))
        folders = {task["folder"] for task in two["tasks"]}
        assert folders == {"tasks/0001-first", "tasks/0002-second"}
        compared = 0
        for mine in sorted(self.whole[method].rglob("tasks/*/*.safetensors")):
            other = path / mine.relative_to(self.whole[method])
            assert mine.read_bytes() == other.read_bytes(), other.name
            compared += len(load_file(mine))
        assert compared > 2
        assert sorted(one["files"]) == sorted(two["files"])
        for key in ("classes", "accuracy", "settings"):
            assert one[key] == two[key]
        assert [row["head_fit"] for row in one["tasks"]] == [row["head_fit"] for row in two["tasks"]]
        assert not (path / "training").exists()


_STARTED: list[Started] = []


@pytest.fixture
def started(learning: Learning, tmp_path: Path, picture_folder: Callable[..., Path]) -> Started:
    if not _STARTED:
        _STARTED.append(Started(learning, tmp_path, picture_folder))
    return _STARTED[0]
