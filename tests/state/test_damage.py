"""States that are damaged, hostile or newer: one clear line that names the file, and nothing is changed."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from sapwood.errors import StateError
from sapwood.state import State

from .helpers import text_commit, tree


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state with three versions, tensors and text."""
    state = State.create(tmp_path_factory.mktemp("damage") / "model", {"tasks": []})
    text_commit(state)
    record = {"tasks": ["birds", "fish"], "files": state.version.record["files"]}
    state.commit(record, {"tasks/0002-fish/head.safetensors": {"w": torch.arange(40.0), "n": torch.arange(3)}}, "fish")
    return state.path


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def read_everything(path: Path) -> None:
    state = State.open(path)
    for name in state.version.record["files"]:
        state.tensors(name) if name.endswith(".safetensors") else state.text(name)
    state.versions()


def file_names(path: Path) -> list[str]:
    return sorted(tree(path))


def test_one_flipped_byte_in_each_file_in_turn(copy: Path) -> None:
    read_everything(copy)
    flips = 0
    for name in file_names(copy):
        good = (copy / name).read_bytes()
        for position in range(0, len(good), max(1, len(good) // 40)):
            bad = bytearray(good)
            bad[position] ^= 1
            (copy / name).write_bytes(bad)
            with pytest.raises(StateError) as caught:
                read_everything(copy)
            # A flip in the pointer may name a version that is not there.
            assert Path(name).name in str(caught.value) or name == "sapwood.json", (position, str(caught.value))
            assert "\n" not in str(caught.value)
            flips += 1
        (copy / name).write_bytes(good)
    read_everything(copy)
    assert len(file_names(copy)) == 6
    assert flips >= 6 * 20


def test_each_file_missing_or_cut_short_in_turn(copy: Path) -> None:
    first, second, _ = State.open(copy).versions()
    older = {f"versions/{version.id}.json" for version in (first, second)}
    for name in file_names(copy):
        good = (copy / name).read_bytes()
        (copy / name).write_bytes(good[: len(good) // 2])
        with pytest.raises(StateError, match=Path(name).name):
            read_everything(copy)
        (copy / name).unlink()
        if name in older:
            read_everything(copy)  # as after prune
        else:
            with pytest.raises(StateError, match=Path(name).name):
                State.open(copy)
        (copy / name).write_bytes(good)


def test_a_newer_format_is_refused_with_the_remedy(copy: Path) -> None:
    (copy / "sapwood.json").write_text('{"format": 2, "head": "something else"}')
    before = tree(copy)
    with pytest.raises(
        StateError, match=r"sapwood.json is in format 2, this sapwood reads formats up to 1: upgrade sapwood"
    ):
        State.open(copy)
    assert tree(copy) == before


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"format": true, "version": "v"}', '{"format": 1}', "[" * 100_000, "\xff"]
)
def test_a_broken_pointer_is_named(copy: Path, text: str) -> None:
    (copy / "sapwood.json").write_text(text, encoding="latin-1")
    with pytest.raises(StateError, match=r"sapwood\.json"):
        State.open(copy)


@pytest.mark.parametrize("identifier", ["../../v0001-00000000", "v0001-0000000g", 3, None])
def test_a_pointer_leads_only_to_versions(copy: Path, identifier: object) -> None:
    (copy / "sapwood.json").write_text(json.dumps({"format": 1, "version": identifier}))
    with pytest.raises(StateError, match="names no version"):
        State.open(copy)


def forge(path: Path, **changes: object) -> None:
    """Make a version record with a valid id say something else, as an attacker can."""
    state = State.open(path)
    record = {key: value for key, value in state.version.record.items() if key != "version"}
    data = json.dumps({**record, **changes}).encode()
    identifier = f"v{state.version.number:04d}-{hashlib.sha256(data).hexdigest()[:8]}"
    (path / "versions" / f"{identifier}.json").write_bytes(data)
    (path / "sapwood.json").write_text(json.dumps({"format": 1, "version": identifier}))


SECRET = {"sha256": hashlib.sha256(b"secret").hexdigest(), "bytes": 6}


@pytest.mark.parametrize("name", ["../secret", "tasks/../../secret", "/etc/passwd", "tasks/./x", "C:\\x", "C:/x", ""])
def test_a_hostile_record_reaches_nothing_outside(copy: Path, name: str) -> None:
    (copy.parent / "secret").write_bytes(b"secret")
    forge(copy, files={name: SECRET})
    with pytest.raises(StateError, match="outside the state"):
        State.open(copy)
    assert (copy.parent / "secret").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"number": 7},
        {"parent": "v0009-00000000"},
        {"previous": "../x"},
        {"files": []},
        {"files": {"tasks/a": 3}},
        {"format": 5},
    ],
)
def test_a_record_that_contradicts_itself_is_refused(copy: Path, changes: dict[str, object]) -> None:
    forge(copy, **changes)
    with pytest.raises(StateError, match=r"versions/v0003-"):
        State.open(copy)


def test_a_link_out_of_the_folder_is_not_swept(copy: Path, tmp_path: Path) -> None:
    outside = tmp_path / "pictures"
    outside.mkdir()
    (outside / "cat.jpg").write_bytes(b"x")
    (copy / "tasks" / "link").symlink_to(outside)
    with State.open(copy).writer():
        pass
    shutil.move(copy / "tasks", tmp_path / "elsewhere")
    (copy / "tasks").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "mine.txt").write_bytes(b"x")
    with State.open(copy).writer():
        pass
    assert tree(outside) == {"cat.jpg": b"x"}
    assert (tmp_path / "elsewhere" / "mine.txt").exists()


def test_damage_in_an_old_version_stops_neither_commit_nor_undo(copy: Path) -> None:
    state = State.open(copy)
    first = copy / "versions" / f"{state.versions()[0].id}.json"
    first.write_bytes(first.read_bytes().replace(b"created", b"crooked"))
    (copy / "tasks" / "stray").write_bytes(b"x")
    text_commit(state, "more")
    assert state.undo().record["tasks"] == ["birds", "fish"]
    assert (copy / "tasks" / "stray").exists(), "nothing is removed while a version cannot be read"
    with pytest.raises(StateError, match=first.name):
        state.versions()


def test_undo_does_not_go_to_a_version_that_would_not_open(tmp_path: Path) -> None:
    state = State.create(tmp_path / "model", {"tasks": []})
    lost = text_commit(state)
    state.commit({"tasks": []}, {}, "relearned")
    (state.path / lost).unlink()
    before = tree(state.path)
    with pytest.raises(StateError, match=rf"{lost} is missing"):
        state.undo()
    assert tree(state.path) == before
    assert State.open(state.path).version == state.version


def test_files_that_are_no_safetensors_are_named(copy: Path) -> None:
    state = State.open(copy)
    with pytest.raises(StateError, match=r"log\.jsonl is no readable safetensors file"):
        state.tensors("tasks/0001-birds/log.jsonl")
