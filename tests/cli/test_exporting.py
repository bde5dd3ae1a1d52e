"""``sapwood export`` on the command line: what it prints, its exit codes, its one line of an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sapwood.learner import Learner

from .conftest import TINY, Run, World


def test_writes_and_says_what_was_checked(sapwood: Run, world: World, tmp_path: Path) -> None:
    done = sapwood("export", world.state, "--to", "merged", tmp_path / "out")
    assert (done.code, done.err) == (0, "")
    version = Learner.open(world.state).state.version.id
    first, second, third = done.out.splitlines()[:3]
    assert first.startswith(f"{tmp_path / 'out'}: merged of version {version}, 3 classes, ")
    assert second.startswith("answers differ by ")
    assert second.endswith(" at most on 8 made-up pictures (allowed 1e-05)")
    assert third.startswith("note: AutoImageProcessor's pixels differ")
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert done.out.splitlines()[-1] == f"how to use it: {tmp_path / 'out' / 'README.md'}"


def test_json(sapwood: Run, world: World, tmp_path: Path) -> None:
    done = sapwood("export", world.state, tmp_path / "out", "--data", world.test, "--json")
    assert done.code == 0
    said = done.json
    assert said["max_difference"] <= said["limit"] == 1e-5
    assert said["checked_on"].endswith(f"pictures of {world.test}")
    assert said["facts"] == json.loads((tmp_path / "out" / "sapwood-export.json").read_text())


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--to", "merged"], "is there already; name another place, or replace it with --force"),
        (["--to", "zip"], "no format 'zip'. Known formats: "),
        (["--dtype", "int8", "--force"], "--dtype: not with --to merged"),
        (["--task", "1", "--force"], "has one weight for the pictures of all rounds"),
        (["--data", "nowhere", "--force"], "no such file or folder: nowhere"),
    ],
)
def test_errors_are_one_line(sapwood: Run, world: World, tmp_path: Path, options: list[str], line: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sapwood-export.json").write_text("{}")
    done = sapwood("export", world.state, tmp_path / "out", *options)
    assert done.code == 2
    assert done.out == ""
    assert line in done.err
    assert done.err.count("\n") == 1
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["sapwood-export.json"]


def test_what_cannot_merge_exits_with_1(sapwood: Run, world: World, tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert sapwood("learn", state, world.first, "--method", "color", "--epochs", 1, *TINY).code == 0
    done = sapwood("export", state, tmp_path / "out")
    assert (done.code, done.out) == (1, "")
    assert "cannot be held by weights alone" in done.err
    assert "--task N (1..1), or everything with --to onnx" in done.err
    assert sapwood("export", state, tmp_path / "out", "--task", 1).code == 0
