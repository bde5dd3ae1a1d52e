"""``learn --keep-probe``, ``probe`` and ``pack``, and what they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from .conftest import TINY, Run, World, tree


def test_pictures_that_are_kept_are_shown_and_can_go(sapwood: Run, tmp_path: Path, read_only_world: World) -> None:
    state = tmp_path / "model"
    learned = sapwood("learn", state, read_only_world.first, *TINY, "--method", "ncm", "--keep-probe", "2")
    assert learned.code == 0, learned.err
    assert "kept in the state to measure on, and not learned: 4 pictures, 2 of each of 2 classes" in learned.err
    assert "on pictures that the state keeps" in learned.out
    facts = sapwood("show", state, "--json").json
    assert (facts["probe"]["images"], facts["probe"]["keep"], facts["accuracy_on"]) == (4, 2, ["probe"])
    assert facts["probe"]["bytes"] == sum(path.stat().st_size for path in state.rglob("probe.*"))
    assert facts["backbone_licence"] == "none (random weights)"
    assert "keeps 4 pictures (" in sapwood("show", state).out

    listed = sapwood("probe", state, "--json").json
    assert listed["classes"] == [{"name": "ant", "images": 2}, {"name": "bee", "images": 2}]
    assert (listed["keep_probe"], listed["removed"], listed["version"]) == (2, 0, facts["version"])
    assert [line.split() for line in sapwood("probe", state).out.splitlines()[1:3]] == [["ant", "2"], ["bee", "2"]]

    harmless = sapwood("learn", state, read_only_world.second, "--max-drop", "100", "--dry-run")
    assert harmless.code == 0, harmless.err  # old classes are measured on what is kept
    gone = sapwood("probe", state, "--remove")
    assert gone.code == 0
    assert f"sapwood prune {state} --keep 1" in gone.out
    assert sapwood("probe", state).out == f"{state} keeps no pictures to measure on\n"
    assert sapwood("show", state, "--json").json["probe"] == {"images": 0, "bytes": 0, "keep": 0}
    refused = sapwood("probe", state, "--remove")
    assert (refused.code, refused.out) == (2, "")
    assert "--keep-probe" in refused.err
    assert "--keep-probe" in sapwood("learn", state, read_only_world.second, "--max-drop", "5").err
    assert sapwood("undo", state).code == 0
    assert len(sapwood("probe", state, "--json").json["classes"]) == 2


def test_masks_are_kept_too(sapwood: Run, tmp_path: Path, mask_folder: Callable[..., Path]) -> None:
    state, first = tmp_path / "model", mask_folder({"road": 6, "car": 4}, 6, name="first")
    how = ("--backbone", "random:dinov2-tiny", "--image-size", "28x42", "--epochs", "1", "--keep-probe", "2")
    learned = sapwood("learn", state, first, *how)
    assert learned.code == 0, learned.err
    assert "kept in the state to measure on, and not learned: 2 pictures, 2 of each of 2 classes" in learned.err
    assert "on pictures that the state keeps" in learned.out
    facts = sapwood("show", state, "--json").json
    assert (facts["probe"]["images"], facts["accuracy_on"]) == (2, ["probe"])
    assert facts["probe"]["bytes"] == sum(path.stat().st_size for path in state.rglob("probe.*"))
    listed = sapwood("probe", state, "--json").json
    assert listed["images"] == 2  # each shows both
    assert {each["name"]: each["images"] for each in listed["classes"]} == {"road": 2, "car": 2}
    said = sapwood("probe", state).out.splitlines()
    assert [line.split() for line in said[1:3]] == [["road", "2"], ["car", "2"]]
    assert "2 pictures never learned" in said[-1]
    assert sapwood("classes", state, "remove", "car").code == 0
    assert sapwood("probe", state).out == f"{state} keeps no pictures to measure on\n"
    assert sapwood("undo", state).code == 0
    assert sapwood("probe", state, "--remove", "--json").json["removed"] == 2
    assert sapwood("show", state, "--json").json["probe"] == {"images": 0, "bytes": 0, "keep": 0}


def test_a_state_is_packed_with_its_backbone(sapwood: Run, tmp_path: Path, read_only_world: World) -> None:
    before = tree(read_only_world.state)
    out = tmp_path / "packed"
    done = sapwood("pack", read_only_world.state, out, "--json")
    assert done.code == 0, done.err
    weights = out / "backbone" / "model.safetensors"
    assert 0 < weights.stat().st_size < done.json["backbone_bytes"]
    assert done.json["backbone_licence"] == json.loads((out / "backbone" / "source.json").read_text())["licence"]
    assert done.json["version"] == sapwood("show", out, "--json").json["version"]
    one, other = (sapwood("predict", path, read_only_world.test, "--json") for path in (read_only_world.state, out))
    assert one.out == other.out
    again = sapwood("pack", read_only_world.state, out)
    assert (again.code, again.out) == (2, "")
    assert "is there already" in again.err
    assert tree(read_only_world.state) == before

    values = weights.read_bytes()
    weights.write_bytes(values[:-1] + bytes([values[-1] ^ 1]))  # they are used, and checked
    damaged = sapwood("predict", out, read_only_world.test)
    assert (damaged.code, damaged.out) == (2, "")
    assert "put the original weights back" in damaged.err


def test_pictures_that_were_learned_measure_too_much(sapwood: Run, read_only_world: World) -> None:
    clean = sapwood("evaluate", read_only_world.state, read_only_world.test, "--json")
    assert clean.json["learned_images"] == 0
    assert "were learned" not in clean.err
    leaked = sapwood("evaluate", read_only_world.state, read_only_world.first, "--json")
    assert leaked.json["learned_images"] == 24
    assert "24 of the test pictures were learned: they measure too much" in leaked.err
