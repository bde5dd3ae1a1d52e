"""The command line in this process, and one small state that many tests read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from sapwood.cli import main

TINY = ("--backbone", "random:dinov2-tiny", "--image-size", "28")
COLOURS = {"ant": (200, 30, 30), "bee": (30, 200, 30), "cow": (30, 30, 200)}


class Result(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)


Run = Callable[..., Result]


@pytest.fixture
def sapwood(capsys: pytest.CaptureFixture[str]) -> Run:
    """``sapwood("show", folder, "--json")``."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Result(int(ended.value.code or 0), out, err)

    return run


def write_classes(folder: Path, counts: Mapping[str, int], seed: int = 0) -> Path:
    """Class folders of noisy one-coloured pictures; for fixtures that outlive a test."""
    random = np.random.default_rng(seed)
    for label, count in counts.items():
        (folder / label).mkdir(parents=True)
        for index in range(count):
            pixels = np.clip(np.array(COLOURS[label]) + random.normal(0, 10, (32, 32, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / label / f"{index:02d}.png")
    return folder


class World(NamedTuple):
    """A state of two rounds (ant and bee; cow and more ants), the pictures it was made from, and test pictures."""

    state: Path
    first: Path
    second: Path
    test: Path


@pytest.fixture(scope="session")
def read_only_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    world = World(
        root / "model",
        write_classes(root / "first", {"ant": 12, "bee": 12}),
        write_classes(root / "second", {"cow": 12, "ant": 4}, seed=1),
        write_classes(root / "test", {"ant": 3, "bee": 3, "cow": 3}, seed=2),
    )
    shutil.copytree(world.test, root / "test1", ignore=shutil.ignore_patterns("cow"))
    learn = ("learn", world.state, world.first, *TINY, "--method", "ncm", "--task", "insects", "--test", root / "test1")
    for line in (learn, ("learn", world.state, world.second, "--test", world.test)):
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in line])
        assert ended.value.code == 0
    return world


@pytest.fixture
def world(read_only_world: World, tmp_path: Path) -> World:
    """The same, with a copy of the state that the test may change."""
    state = tmp_path / "model"
    shutil.copytree(read_only_world.state, state)
    return read_only_world._replace(state=state)


def tree(folder: Path) -> dict[str, bytes]:
    """Relative path to bytes of every file, the lock left out."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
