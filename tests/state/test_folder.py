"""Create, open, commit, undo, and the files of a version."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sapwood.errors import StateError
from sapwood.state import FORMAT, State, StateMoved

from .helpers import start, text_commit, tree


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State.create(tmp_path / "model", {"method": "seq-lora", "tasks": []})


def test_a_new_state_is_version_one_and_opens(state: State) -> None:
    opened = State.open(state.path)
    assert opened.version == state.version
    assert (opened.version.number, opened.version.record["format"], opened.version.record["parent"]) == (
        1,
        FORMAT,
        None,
    )
    assert opened.version.record["method"] == "seq-lora"
    assert opened.version.record["files"] == {}
    assert [version.id for version in opened.versions()] == [state.version.id]


def test_a_commit_keeps_the_files_it_names_and_adds_new_ones(state: State) -> None:
    tensors = {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": torch.tensor(True),
        "c": torch.zeros(0, 4, dtype=torch.bfloat16),
    }
    first = state.commit(
        {"tasks": ["one"]}, {"tasks/0001-one/head.safetensors": tensors, "tasks/0001-one/log.jsonl": "{}\n"}, "one"
    )
    assert first.id == State.open(state.path).version.id
    record = {"tasks": ["one", "two"], "files": ["tasks/0001-one/head.safetensors"]}
    second = state.commit(record, {"tasks/0002-two/text.jsonl": "ä\r\n\udc80"}, "two")
    opened = State.open(state.path)
    assert opened.version == second
    assert set(second.record["files"]) == {"tasks/0001-one/head.safetensors", "tasks/0002-two/text.jsonl"}
    assert (second.number, second.record["parent"], second.record["note"]) == (3, first.id, "two")
    assert opened.text("tasks/0002-two/text.jsonl") == "ä\r\n\udc80"
    loaded = opened.tensors("tasks/0001-one/head.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(
        torch.equal(loaded[name], tensors[name]) and loaded[name].dtype == tensors[name].dtype for name in tensors
    )
    loaded["a"].add_(1)  # the reader's own memory, not the file's
    assert torch.equal(State.open(state.path).tensors("tasks/0001-one/head.safetensors")["a"], tensors["a"])
    assert [version.record["note"] for version in opened.versions()] == ["created", "one", "two"]
    with pytest.raises(StateError, match=r"no file 'tasks/0001-one/log.jsonl'; it has: tasks/0001-one/head"):
        opened.text("tasks/0001-one/log.jsonl")


def test_tensors_that_share_memory_or_are_views_are_written_as_they_look(state: State) -> None:
    base = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    tensors = {
        "a": base,
        "again": base,
        "transposed": base.t(),
        "part": base[1:3, ::2],
        "grad": base.clone().requires_grad_(),
    }
    state.commit({}, {"tasks/0001-x/adapter.safetensors": tensors}, "x")
    loaded = State.open(state.path).tensors("tasks/0001-x/adapter.safetensors")
    assert all(torch.equal(loaded[name], value.detach()) for name, value in tensors.items())


def test_what_commit_returns_is_what_a_reader_sees(state: State) -> None:
    version = state.commit({"pair": (1, 2), "names": {1: "é\udcff"}, "note": "mine", "number": 99}, {}, "noted")
    assert version == State.open(state.path).version
    assert version.record["pair"] == [1, 2]
    assert (version.record["note"], version.record["number"], version.record["version"]) == ("noted", 2, version.id)


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, Path("x")])
def test_a_record_that_is_not_json_leaves_the_state_as_it_was(state: State, value: object) -> None:
    before = tree(state.path)
    with pytest.raises(StateError, match="not plain JSON"):
        state.commit({"accuracy": value}, {"tasks/0001-x/log.jsonl": "x"}, "x")
    assert tree(state.path) == before


@pytest.mark.parametrize(
    "name", ["../x", "/tmp/x", "tasks/../../x", "tasks//x", "tasks\\x", "sapwood.json", "training/x", ""]
)
def test_a_commit_writes_only_below_tasks(state: State, name: str) -> None:
    before = tree(state.path.parent)
    with pytest.raises(StateError, match="files lie below tasks/"):
        state.commit({}, {name: "x"}, "x")
    assert tree(state.path.parent) == before


def test_files_of_earlier_versions_are_never_written_again(state: State) -> None:
    path = text_commit(state)
    before = tree(state.path)
    with pytest.raises(StateError, match="immutable"):
        state.commit({"tasks": []}, {"tasks/0009-new/log.jsonl": "new", path: "other"}, "again")
    assert tree(state.path) == before
    with pytest.raises(StateError, match="has no file 'tasks/unknown' to keep"):
        state.commit({"files": ["tasks/unknown"]}, {}, "again")


def test_ctrl_c_in_the_middle_of_a_commit_takes_everything_back(state: State) -> None:
    class Interrupted(dict[str, torch.Tensor]):
        def items(self) -> NoReturn:
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the signal should have raised KeyboardInterrupt")

    before = tree(state.path)
    files = {"tasks/0001-x/log.jsonl": "done", "tasks/0001-x/head.safetensors": Interrupted()}
    # A shell gives its background jobs a SIGINT that is ignored; Python then leaves it so.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            state.commit({"tasks": ["x"]}, files, "x")
    finally:
        signal.signal(signal.SIGINT, handler)
    assert tree(state.path) == before
    assert not (state.path / "tasks").exists()
    text_commit(state)
    assert State.open(state.path).version == state.version


def test_undo_goes_back_round_by_round_and_nothing_is_lost(state: State) -> None:
    names = [text_commit(state, name) for name in ("one", "two", "three")]
    everything = tree(state.path)
    seen = []
    for _ in range(3):
        version = state.undo()
        seen.append((version.number, version.record["tasks"], sorted(version.record["files"])))
    assert seen == [(5, ["one", "two"], names[:2]), (6, ["one"], names[:1]), (7, [], [])]
    with pytest.raises(StateError, match="nothing to undo"):
        state.undo()
    assert State.open(state.path).version == state.version
    assert everything.items() - tree(state.path).items() == {("sapwood.json", everything["sapwood.json"])}
    assert [version.number for version in state.versions()] == [1, 2, 3, 4, 5, 6, 7]


def test_a_round_after_undo_gets_its_own_folder_and_number(state: State) -> None:
    one = text_commit(state, "Birds!")
    state.undo()
    assert state.free_task_folder(1, "Birds!") == "tasks/0001-birds-2"
    again = text_commit(State.open(state.path), "other")
    opened = State.open(state.path)
    assert set(opened.version.record["files"]) == {again}
    assert opened.version.number == 4
    opened.undo()
    assert opened.version.record["tasks"] == []
    assert (state.path / one).exists()


@given(st.text(max_size=80), st.integers(0, 12_000))
def test_any_task_name_gives_a_safe_folder_name(name: str, index: int) -> None:
    folder = State(Path("nowhere"), None).free_task_folder(index, name)  # type: ignore[arg-type]
    tasks, _, leaf = folder.partition("/")
    assert tasks == "tasks"
    assert set(leaf) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert leaf.startswith(f"{index:04d}-")
    assert not leaf.endswith("-")
    assert len(leaf) <= 50


def test_create_refuses_what_is_there(state: State, tmp_path: Path) -> None:
    with pytest.raises(StateError, match="is a state already"):
        State.create(state.path, {})
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "cat.jpg").write_bytes(b"x")
    with pytest.raises(StateError, match=r"not empty and not a sapwood state .*'cat.jpg'"):
        State.create(pictures, {})
    assert tree(pictures) == {"cat.jpg": b"x"}
    with pytest.raises(StateError, match="not a folder"):
        State.create(pictures / "cat.jpg", {})
    (tmp_path / "empty").mkdir()
    assert State.create(str(tmp_path / "empty"), {}).version.number == 1
    assert not State.exists(pictures)
    assert State.exists(state.path)


def test_open_says_what_is_no_state(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no such state folder"):
        State.open(tmp_path / "nowhere")
    with pytest.raises(StateError, match="not a sapwood state"):
        State.open(tmp_path)


def test_a_state_that_moved_on_is_not_overwritten(state: State) -> None:
    stale = State.open(state.path)
    text_commit(state)
    with pytest.raises(StateError, match=rf"moved from version {stale.version.id} to {state.version.id}"):
        text_commit(stale)
    assert stale.refresh() == state.version
    text_commit(stale)
    assert State.open(state.path).version == stale.version


def test_a_reader_of_a_pruned_version_reads_the_pointer_once_more(state: State) -> None:
    old = text_commit(state)
    pruned = state.version

    def prune() -> None:
        state.undo()
        for path in (state.path / "versions" / f"{pruned.id}.json", state.path / old):
            path.unlink()

    opened = State.open(state.path)
    ids = []

    def load(reader: State) -> list[str]:
        ids.append(reader.version.id)
        if len(ids) == 1:
            prune()
        return [reader.text(name) for name in reader.version.record["files"]]

    assert State.read(state.path, load) == []
    assert ids == [pruned.id, state.version.id]
    with pytest.raises(StateMoved, match=rf"{pruned.id} was pruned.*now at {state.version.id}"):
        opened.text(old)
    assert [version.number for version in state.versions()] == [1, 3]


def test_reading_versions_imports_nothing_heavy(state: State) -> None:
    script = """
import sys
from sapwood.state import State
State.open(sys.argv[1]).versions()
print([name for name in ("torch", "safetensors", "filelock") if name in sys.modules])
"""
    output, errors = start(script, state.path).communicate(timeout=20)
    assert output == "[]\n", errors


def test_the_pointer_holds_format_and_version_and_nothing_else(state: State) -> None:
    assert json.loads((state.path / "sapwood.json").read_text()) == {"format": 1, "version": state.version.id}
