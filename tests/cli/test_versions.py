"""Rollback, prune and the list of versions by commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from sapwood.errors import StateError
from sapwood.learner import Learner
from sapwood.state import State
from sapwood.state.training import base_of

from .conftest import Run, World, tree


def answers(sapwood: Run, state: Path, test: Path) -> list[dict]:
    predictions = sapwood("predict", state, test, "--json").json["predictions"]
    assert len(predictions) == 9
    return predictions


def test_rollback_predicts_as_then_and_undo_takes_it_back(sapwood: Run, world: World) -> None:
    now = answers(sapwood, world.state, world.test)
    then = State.open(world.state).versions()[1]
    State.open(world.state).training.begin({"task": "owls"})
    done = sapwood("rollback", world.state, "--to", "v2")
    version = State.open(world.state).version
    assert done == (0, f"{world.state} is now {version.id}, rollback to {then.id}\n", done.err)
    assert "round 'owls', which was half learned, has been dropped too" in done.err
    assert {one["class"] for one in answers(sapwood, world.state, world.test)} == {"ant", "bee"}
    assert sapwood("show", world.state, "--json").json["accuracy"] == then.record["accuracy"]
    assert sapwood("undo", world.state).code == 0
    assert answers(sapwood, world.state, world.test) == now
    assert sapwood("rollback", world.state, "--to", version.id).code == 0
    assert sapwood("learn", world.state, world.second).code == 0, "and a round is learned on what was gone back to"
    assert answers(sapwood, world.state, world.test) == now


def test_prune_keeps_the_answers_and_frees_the_rest(sapwood: Run, world: World) -> None:
    now = answers(sapwood, world.state, world.test)
    ids = [version.id for version in State.open(world.state).versions()]
    done = sapwood("prune", world.state, "--keep", "1")
    assert done == (0, f"{world.state} is still {ids[2]}; removed {ids[0]}, {ids[1]}; kept 1 version\n", "")
    assert answers(sapwood, world.state, world.test) == now
    listed = sapwood("show", world.state, "--versions", "--json").json["versions"]
    assert [row["id"] for row in listed] == [ids[2]]
    gone = sapwood("rollback", world.state, "--to", "v2")
    assert (gone.code, gone.out) == (2, "")
    assert gone.err == f"error: {world.state} has no version 'v2'; it has {ids[2]}\n"
    again = sapwood("prune", world.state, "--keep", "3")
    assert again.out == f"{world.state} is still {ids[2]}; nothing to remove; kept 1 version\n"


def test_versions_as_json_and_for_people(sapwood: Run, world: World) -> None:
    assert sapwood("undo", world.state).code == 0
    versions = State.open(world.state).versions()
    rows = sapwood("show", world.state, "--versions", "--json").json["versions"]
    assert [row["id"] for row in rows] == [version.id for version in versions]
    assert [row["number"] for row in rows] == [1, 2, 3, 4]
    assert [row["current"] for row in rows] == [False, False, False, True]
    assert [row["note"] for row in rows] == [
        "created",
        "learn insects",
        "learn task-2",
        f"undo of {versions[2].id}: back to {versions[1].id}",
    ]
    assert rows[0]["bytes"] == 0
    stored = sum((world.state / name).stat().st_size for name in versions[1].record["files"])
    assert rows[3]["bytes"] == rows[1]["bytes"] == stored
    assert all(row["created"].startswith("20") for row in rows)
    text = sapwood("show", world.state, "--versions").out
    assert [line.split()[0] for line in text.splitlines() if "v000" in line and "  " in line][-1] == "*"
    assert text.count("*") == 1


def test_going_back_and_pruning_as_json(sapwood: Run, world: World) -> None:
    first, second, third = (version.id for version in State.open(world.state).versions())
    back = sapwood("rollback", world.state, "--to", "v2", "--json")
    fourth = State.open(world.state).version.id
    assert (back.code, back.json) == (0, {"version": fourth, "before": third, "note": f"rollback to {second}"})
    taken = sapwood("undo", world.state, "--json").json
    fifth = State.open(world.state).version
    assert taken == {"version": fifth.id, "before": fourth, "note": fifth.record["note"]}
    State.open(world.state).training.begin({"task": "owls", "base": base_of(fifth.record["tasks"])})
    dropped = sapwood("undo", world.state, "--json")
    assert dropped.json == {"version": fifth.id, "before": fifth.id, "note": fifth.record["note"]}
    assert "'owls'" in dropped.err
    pruned = sapwood("prune", world.state, "--keep", "2", "--json").json
    assert pruned == {"version": fifth.id, "removed": [first, second, third], "versions": [fourth, fifth.id]}


def test_a_learner_whose_version_was_pruned_goes_on_with_the_one_that_is_current(world: World) -> None:
    opened = [Learner.open(world.state, device="cpu") for _ in range(3)]
    loaded = Learner.open(world.state, device="cpu")
    assert len(loaded.network.state_dict()) > 0
    state = State.open(world.state)
    version = state.rollback("v2")
    state.prune(1)
    assert {answer.label for answer in opened[0].predict([world.test])} == {"ant", "bee"}
    assert opened[0].state.version == version
    measured = opened[1].evaluate(world.first)
    assert (measured.version, measured.classes) == (version.id, ["ant", "bee"])
    with pytest.raises(StateError, match="run the command again"):
        opened[2].undo()
    assert {answer.label for answer in loaded.predict([world.test])} == {"ant", "bee", "cow"}, "it is in memory"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("rollback", "--to", "v7"), "has no version 'v7'; it has v0001-"),
        (("rollback", "--to", "v3"), "already"),
        (("rollback",), "Missing option '--to'"),
        (("prune", "--keep", "0"), "--keep"),
        (("prune",), "Missing option '--keep'"),
    ],
)
def test_what_is_refused(sapwood: Run, world: World, line: tuple[str, ...], said: str) -> None:
    before = tree(world.state)
    done = sapwood(line[0], world.state, *line[1:])
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert tree(world.state) == before


@pytest.mark.parametrize("line", [("rollback", "--to", "v1"), ("prune", "--keep", "1")])
def test_where_there_is_no_state(sapwood: Run, tmp_path: Path, line: tuple[str, ...]) -> None:
    done = sapwood(line[0], tmp_path / "nothing", *line[1:])
    assert (done.code, done.out) == (2, "")
    assert "no such state folder" in done.err
    assert not (tmp_path / "nothing").exists()
