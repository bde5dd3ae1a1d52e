"""Going to any earlier version, and forgetting old ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sapwood.errors import StateBusy, StateError
from sapwood.state import State, StateMoved

from .helpers import committed_files, start, text_commit, tree


@pytest.fixture
def state(tmp_path: Path) -> State:
    """Five versions: created, and a round each in 2 to 5."""
    made = State.create(tmp_path / "model", {"tasks": []})
    for name in ("one", "two", "three", "four"):
        text_commit(made, name)
    return made


def numbers(state: State) -> list[int]:
    return [version.number for version in state.versions()]


@pytest.mark.parametrize("form", ["v3", "v0003", "3", "id"])
def test_a_rollback_is_a_version_with_the_earlier_content(state: State, form: str) -> None:
    earlier, before = state.versions()[2], tree(state.path)
    version = state.rollback(earlier.id if form == "id" else form)
    assert (version.number, version.record["note"]) == (6, f"rollback to {earlier.id}")
    assert version.record["tasks"] == ["one", "two"]
    assert version.record["files"] == earlier.record["files"]
    assert version == State.open(state.path).version
    assert before.items() - tree(state.path).items() == {("sapwood.json", before["sapwood.json"])}, "nothing is lost"


def test_undo_takes_a_rollback_back(state: State) -> None:
    state.rollback("v2")
    back = state.undo()
    assert back.record["tasks"] == ["one", "two", "three", "four"]
    assert state.undo().record["tasks"] == ["one", "two", "three"], "and goes on as if there had been none"
    text_commit(state, "five")
    assert state.rollback("v6").record["tasks"] == ["one"]
    assert numbers(state) == list(range(1, 11))


@pytest.mark.parametrize("wanted", ["v9", "v0", "v3-00000000", "latest", "", "../v0003", "v0003-", "v99999999999999"])
def test_a_version_that_is_not_there_lists_those_that_are(state: State, wanted: str) -> None:
    before = tree(state.path)
    with pytest.raises(StateError) as caught:
        state.rollback(wanted)
    ids = ", ".join(version.id for version in state.versions())
    assert str(caught.value) == f"{state.path} has no version {wanted!r}; it has {ids}"
    assert tree(state.path) == before


def test_no_rollback_to_where_it_is_or_to_what_would_not_open(state: State) -> None:
    with pytest.raises(StateError, match=rf"at version {state.version.id} already"):
        state.rollback("v5")
    lost = next(iter(state.versions()[1].record["files"]))
    state.commit({"tasks": []}, {}, "anew")
    (state.path / lost).unlink()
    before = tree(state.path)
    with pytest.raises(StateError, match=rf"{lost} is missing"):
        state.rollback("v2")
    assert tree(state.path) == before


def test_prune_keeps_the_newest_and_every_file_that_they_need(state: State) -> None:
    ids = [version.id for version in state.versions()]
    state.undo()  # 6: has the files of 4, not that of 5
    kept = committed_files(state) - {f"versions/{name}.json" for name in ids[:4]}
    assert state.prune(2) == ids[:4]
    assert numbers(state) == [5, 6]
    assert set(tree(state.path)) == kept
    assert state.prune(2) == [], "nothing more to do"
    assert state.prune(1) == [ids[4]]
    assert set(tree(state.path)) == committed_files(state)
    assert [name for name in tree(state.path) if "four" in name] == []
    opened = State.open(state.path)
    assert opened.version.record["tasks"] == ["one", "two", "three"]
    assert all(opened.text(name) for name in opened.version.record["files"])
    with pytest.raises(StateError, match=rf"version {ids[2]}, to undo to, was pruned; `rollback` goes to those left"):
        opened.undo()
    text_commit(opened, "five")
    assert opened.undo().record["tasks"] == ["one", "two", "three"]
    assert numbers(opened) == [6, 7, 8]


def test_prune_of_more_than_there_are_removes_nothing(state: State) -> None:
    before = tree(state.path)
    assert state.prune(5) == state.prune(10**9) == []
    with pytest.raises(StateError, match=r"0 versions cannot be kept.*give >= 1"):
        state.prune(0)
    assert tree(state.path) == before


def test_prune_leaves_what_the_user_and_a_half_learned_round_have_there(state: State) -> None:
    state.training.begin({"task": "five"})
    (state.path / "notes.txt").write_text("mine")
    (state.path / "versions" / "notes.txt").write_text("mine")
    before = tree(state.path)
    state.prune(1)
    after = tree(state.path)
    assert {"notes.txt", "versions/notes.txt", "training/plan.json"} <= set(after)
    assert after.items() <= before.items(), "removes and changes nothing else"


def test_prune_removes_a_damaged_old_version_but_keeps_all_if_a_new_one_is_damaged(state: State) -> None:
    first, _, third, *_ = state.versions()
    path = state.path / "versions" / f"{third.id}.json"
    good = path.read_bytes()
    path.write_bytes(good.replace(b"learned", b"burned!"))
    before = tree(state.path)
    with pytest.raises(StateError, match=path.name):
        state.prune(4)
    assert tree(state.path) == before
    removed = state.prune(2)
    assert removed[0] == first.id
    assert removed[-1] == third.id
    assert numbers(state) == [4, 5]
    assert set(tree(state.path)) == committed_files(state)


def test_a_damaged_version_is_not_gone_back_to(state: State) -> None:
    """Of the right size, so that only its checksum tells."""
    damaged = next(iter(state.versions()[1].record["files"]))
    state.commit({"tasks": []}, {}, "anew")
    data = (state.path / damaged).read_bytes()
    (state.path / damaged).write_bytes(bytes([data[0] ^ 1]) + data[1:])
    before = tree(state.path)
    with pytest.raises(StateError, match=rf"{damaged} is damaged"):
        state.rollback("v2")
    assert tree(state.path) == before


def test_the_only_version_to_stay_must_be_whole(state: State) -> None:
    damaged = next(iter(state.version.record["files"]))
    data = (state.path / damaged).read_bytes()
    (state.path / damaged).write_bytes(bytes([data[0] ^ 1]) + data[1:])
    before = tree(state.path)
    with pytest.raises(StateError, match=rf"{damaged} is damaged"):
        state.prune(1)
    assert tree(state.path) == before


def test_where_the_newest_version_lacks_a_file_earlier_ones_are_within_reach(state: State) -> None:
    kept = state.versions()[2]
    lost = next(name for name in state.version.record["files"] if name not in kept.record["files"])
    (state.path / lost).unlink()
    with pytest.raises(StateError, match=rf"{lost} is missing; .*, or go back to a whole version .`undo`, `rollback`."):
        State.open(state.path)
    opened = State.open(state.path, whole=False)
    assert [version.id for version in opened.versions()][-1] == state.version.id
    opened.rollback(kept.id)
    assert State.open(state.path).version.record["tasks"] == kept.record["tasks"]


def test_prune_removes_nothing_where_a_version_to_keep_lacks_a_file(state: State) -> None:
    lost = next(iter(state.version.record["files"]))
    state.commit({"tasks": []}, {}, "anew")
    (state.path / lost).unlink()
    before = tree(state.path)
    with pytest.raises(StateError, match=rf"{lost} is missing"):
        state.prune(2)
    assert tree(state.path) == before
    state.prune(1)
    assert numbers(state) == [6]


def test_prune_does_not_reach_through_links(state: State, tmp_path: Path) -> None:
    outside = tmp_path / "pictures"
    outside.mkdir()
    (outside / "cat.jpg").write_bytes(b"x")
    (state.path / "tasks" / "link").symlink_to(outside)
    state.prune(1)
    assert tree(outside) == {"cat.jpg": b"x"}


def test_a_second_writer_neither_rolls_back_nor_prunes(state: State) -> None:
    other, before = State.open(state.path), tree(state.path)
    with state.writer():
        with pytest.raises(StateBusy):
            other.prune(1)
        with pytest.raises(StateBusy):
            other.rollback("v2")
        with pytest.raises(StateBusy):
            other.undo()
    assert tree(state.path) == before
    text_commit(state, "five")
    with pytest.raises(StateError, match="run the command again"):
        other.prune(1)


def test_a_reader_goes_on_with_the_version_that_is_current_once_its_own_was_pruned(state: State) -> None:
    reader = State.open(state.path)
    opened = reader.version

    def load() -> list[str]:
        return [reader.text(name) for name in reader.version.record["files"]]

    whole = reader.reading(load)
    state.rollback("v2")
    assert reader.reading(load) == whole, "still there, so it is still read"
    state.prune(1)
    with pytest.raises(StateMoved, match=rf"{opened.id} was pruned.*now at {state.version.id}"):
        load()
    assert reader.reading(load) == whole[:1]
    assert reader.version == state.version


EVERY_STEP = """
import json, sys
from pathlib import Path
from every_step import check_nothing_left_over, killed_before_every_step
from sapwood.state import State
base, work, action = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
versions = {version.id: version for version in State.open(base).versions()}
def act():
    state = State.open(work)
    state.rollback("v2") if action == "rollback" else state.prune(2)
results = []
for step in killed_before_every_step(base, work, act):
    state = State.open(work)
    [state.text(name) for name in state.version.record["files"]]
    left = [version.number for version in state.versions()]
    results.append(left)
    for version in state.versions():
        assert version.id not in versions or version == versions[version.id]
        missing = [name for name in version.record["files"] if not (work / name).exists()]
        assert not missing, (step, version.id, missing)
    with state.writer():
        pass
    check_nothing_left_over(state)
    state.prune(2)
    assert [version.number for version in state.versions()] == list(range(left[-1] - 1, left[-1] + 1)), step
print(json.dumps(results))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize(
    ("action", "outcomes"),
    [
        ("rollback", [[1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6]]),
        ("prune", [[1, 2, 3, 4, 5], [2, 3, 4, 5], [3, 4, 5], [4, 5]]),
    ],
)
def test_killed_before_every_step(state: State, tmp_path: Path, action: str, outcomes: list[list[int]]) -> None:
    process = start(EVERY_STEP, state.path, tmp_path / "work", action)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    results = json.loads(output)
    distinct = [result for index, result in enumerate(results) if index == 0 or result != results[index - 1]]
    assert distinct == outcomes, "one after the other, and never back"
    assert len(results) >= 10
