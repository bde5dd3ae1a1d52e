"""``learn --dry-run`` and ``learn --max-drop``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import TINY, Run, World, tree, write_classes

NCM = (*TINY, "--method", "ncm")


@pytest.fixture
def rival(tmp_path: Path) -> Path:
    """A new class whose pictures look like ants."""
    folder = write_classes(tmp_path / "rival", {"ant": 12}, seed=5)
    (folder / "ant").rename(folder / "aunt")
    return folder


def test_a_dry_run_says_it_and_writes_nothing(sapwood: Run, world: World, rival: Path) -> None:
    before = tree(world.state)
    said = sapwood("learn", world.state, rival, "--dry-run")
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert lines[0] == "new classes: aunt (12 pictures)"
    assert "the new class 'aunt' is named nearly like the known class 'ant'; if they are one, use one name" in lines
    assert any(line.endswith("of 'aunt' is called 'ant' (11 looked at)") for line in lines)  # one is held out
    assert lines[-2].startswith("estimate: about ")
    assert lines[-1] == "dry run: nothing was written"
    told = sapwood("learn", world.state, rival, "--dry-run", "--json", "--task", "third", "--test", world.test)
    facts = told.json
    assert (facts["task"], facts["standing"], facts["new_classes"]) == (
        "third",
        "new",
        [{"name": "aunt", "images": 12}],
    )
    assert facts["called_today"][0]["called"] == "ant"
    assert facts["version"] == sapwood("show", world.state, "--json").json["version"]
    assert tree(world.state) == before
    learned = sapwood("learn", world.state, rival)
    assert lines[:-2] == [line for line in learned.err.splitlines() if not line.startswith("estimate")]


def test_a_dry_run_of_a_new_state(sapwood: Run, tmp_path: Path, read_only_world: World) -> None:
    said = sapwood("learn", tmp_path / "fresh", read_only_world.first, *NCM, "--dry-run", "--json")
    assert said.code == 0, said.err
    assert said.json["version"] is None
    assert [entry["name"] for entry in said.json["new_classes"]] == ["ant", "bee"]
    assert f"new state {tmp_path / 'fresh'}: method ncm" in said.err
    assert not (tmp_path / "fresh").exists()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thing.txt").write_text("mine")
    refused = sapwood("learn", foreign, read_only_world.first, *NCM, "--dry-run")
    assert (refused.code, refused.out) == (2, "")
    assert tree(foreign) == {"thing.txt": b"mine"}


def test_a_dry_run_refuses_what_learn_refuses(sapwood: Run, world: World, rival: Path) -> None:
    before = tree(world.state)
    for wrong, said in (
        (("--task", "insects"), "has learned a round 'insects' already"),
        (("--method", "ranpac"), "--method ncm, not ranpac"),
        (("--max-drop", "5"), "--test"),
        (("--max-drop", "200", "--test", world.test), "0..100 percentage points, got 200"),
    ):
        done = sapwood("learn", world.state, rival, "--dry-run", *wrong)
        assert (done.code, done.out) == (2, "")
        assert said in done.err
    assert tree(world.state) == before


def test_a_round_that_harms_ends_with_three(sapwood: Run, world: World, rival: Path) -> None:
    before = tree(world.state)
    line = ("learn", world.state, rival, "--test", world.test, "--task", "third", "--max-drop")
    for _ in range(2):
        done = sapwood(*line, "10")
        assert (done.code, done.out) == (3, "")
        error = done.err.splitlines()[-1]
        assert error.startswith("error: round 'third' was not committed")
        assert "'ant' from 100.0 to " in error
        assert tree(world.state) == before
    refused = sapwood(*line, "10", "--json")
    facts = json.loads(refused.out)
    assert (refused.code, facts["committed"], facts["max_drop"]) == (3, False, 10)
    (dropped,) = facts["dropped"]
    assert (dropped["class"], dropped["before"]) == ("ant", 1.0)
    assert 0 <= dropped["after"] < 0.9
    assert tree(world.state) == before
    assert sapwood(*line, "100").code == 0
    assert "aunt" in sapwood("show", world.state, "--json").json["classes"]


def test_a_first_round_that_fails_still_leaves_no_state(sapwood: Run, tmp_path: Path, read_only_world: World) -> None:
    done = sapwood("learn", tmp_path / "fresh", read_only_world.first, *NCM, "--max-drop", "5")
    assert done.code == 2
    assert not (tmp_path / "fresh").exists()
