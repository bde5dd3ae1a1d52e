"""Learning by commands: options, settings, what stays fixed, going back, reports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sapwood.state import State

from .conftest import TINY, Run, World, tree

SEQ_LORA = (*TINY, "--method", "seq-lora", "--epochs", "1")


def record_of(state: Path) -> dict:
    return dict(State.open(state).version.record)


def test_options_settings_and_file_are_recorded(sapwood: Run, tmp_path: Path, read_only_world: World) -> None:
    config = tmp_path / "settings.toml"
    config.write_text("[training]\nepochs = 9\nlr = 0.25\nwarmup = 0.5\n[adapter]\nrank = 2\nalpha = 4\n")
    state = tmp_path / "model"
    done = sapwood(
        *("learn", state, read_only_world.first, *SEQ_LORA, "--seed", "7", "--batch-size", "5", "--workers", "0"),
        *("--config", config, "--set", "adapter.rank=3", "--set", "training.lr=0.125", "--validation", "0"),
        *("--precision", "fp32", "--device", "cpu", "--head", "cosine"),
    )
    assert done.code == 0, done.err
    record = record_of(state)
    training = record["settings"]["training"]
    assert (record["seed"], record["parts"]["head"]) == (7, "cosine")
    assert (training["epochs"], training["lr"], training["warmup"]) == (1, 0.125, 0.5), "option over --set over file"
    assert (training["batch_size"], training["validation"], training["precision"]) == (5, 0, "fp32")
    assert (record["settings"]["adapter"]["rank"], record["settings"]["adapter"]["alpha"]) == (3, 4.0)
    assert "training: 5/5, loss" in done.err
    assert f"{state} is now v0002-" in done.out


def test_a_json_file_of_settings(sapwood: Run, tmp_path: Path, read_only_world: World) -> None:
    config = tmp_path / "settings.json"
    config.write_text(json.dumps({"training": {"epochs": 2}, "head": {"align": "gaussian"}}))
    state = tmp_path / "model"
    done = sapwood("learn", state, read_only_world.first, *TINY, "--method", "seq-lora", "--config", config)
    assert done.code == 0, done.err
    assert record_of(state)["settings"]["training"]["epochs"] == 2
    assert record_of(state)["settings"]["head"]["align"] == "gaussian"


def test_later_rounds_inherit_and_may_change_training_only(
    sapwood: Run, tmp_path: Path, read_only_world: World
) -> None:
    state = tmp_path / "model"
    assert sapwood("learn", state, read_only_world.first, *SEQ_LORA, "--set", "adapter.rank=2").code == 0
    repeated = (*SEQ_LORA, "--seed", "0", "--head", "linear", "--set", "adapter.rank=2", "--set", "training.lr=0.01")
    assert sapwood("learn", state, read_only_world.second, *repeated).code == 0
    training = record_of(state)["settings"]["training"]
    assert (training["epochs"], training["lr"]) == (1, 0.01)


@pytest.mark.parametrize(
    ("option", "has"),
    [
        (("--method", "ranpac"), "--method ncm, not ranpac"),
        (("--head", "ridge"), "--head prototype, not ridge"),
        (("--backbone", "random:vit-tiny"), "--backbone random:dinov2-tiny, not random:vit-tiny"),
        (("--image-size", "42"), "--image-size 28, not 42"),
        (("--seed", "1"), "--seed 0, not 1"),
        (("--set", "objective.scope=seen"), "objective.scope=own, not seen"),
    ],
)
def test_what_cannot_change(sapwood: Run, world: World, option: tuple[str, str], has: str) -> None:
    before = tree(world.state)
    done = sapwood("learn", world.state, world.first, *option)
    assert (done.code, done.out) == (2, "")
    assert has in done.err
    assert "name a new state folder" in done.err
    assert tree(world.state) == before


def test_undo_goes_back_and_the_round_can_be_learned_again(sapwood: Run, world: World) -> None:
    done = sapwood("undo", world.state)
    assert done.code == 0
    assert "back to v0002-" in done.out
    facts = sapwood("show", world.state, "--json").json
    assert facts["classes"] == ["ant", "bee"]
    assert sapwood("learn", world.state, world.second).code == 0
    assert sapwood("show", world.state, "--json").json["classes"] == ["ant", "bee", "cow"]


def test_record_fills_the_last_row(sapwood: Run, world: World) -> None:
    assert sapwood("learn", world.state, world.first, "--task", "third", "--relearn").code == 0
    facts = sapwood("show", world.state, "--json").json
    assert facts["accuracy"][2][:2] == [None, None]
    assert facts["accuracy_on"] == ["test", "test", "validation"]
    assert "on its validation pictures" in sapwood("show", world.state).out
    measured = sapwood("evaluate", world.state, world.test, "--json").json
    assert sapwood("show", world.state, "--json").json == facts, "without --record nothing changes"
    assert sapwood("evaluate", world.state, world.test, "--record").code == 0
    facts = sapwood("show", world.state, "--json").json
    assert facts["accuracy"][2] == [measured["per_task"][task["name"]] for task in facts["tasks"]]
    assert facts["accuracy_on"][2] == "test"


def test_a_csv_and_a_folder_of_splits(sapwood: Run, tmp_path: Path, read_only_world: World) -> None:
    listed = "\n".join(f"{path},{path.parent.name}" for path in sorted(read_only_world.first.glob("*/*.png")))
    table = tmp_path / "list.csv"
    table.write_text(f"path,label\n{listed}\n")
    (tmp_path / "data").mkdir()
    for part, source in (("train", read_only_world.first), ("test", read_only_world.test)):
        (tmp_path / "data" / part).symlink_to(source, target_is_directory=True)
    state = tmp_path / "model"
    assert sapwood("learn", state, table, *TINY, "--method", "ncm").code == 0
    assert sapwood("learn", state, read_only_world.second).code == 0
    assert sapwood("evaluate", state, tmp_path / "data", "--json").json["images"] == 9


def test_the_text_for_people(sapwood: Run, read_only_world: World) -> None:
    shown = sapwood("show", read_only_world.state, "--versions").out
    assert "ncm on random:dinov2-tiny at 28 px, 3 classes" in shown
    assert "after insects" in shown
    assert "*  v0003-" in shown
    measured = sapwood("evaluate", read_only_world.state, read_only_world.test).out
    assert "% of 9 pictures right" in measured
    predicted = sapwood("predict", read_only_world.state, read_only_world.test / "cow", "--top", "3").out
    assert len(predicted.splitlines()) == 3
    assert all({"ant", "bee", "cow"} <= set(line.split()) for line in predicted.splitlines())


def test_report(sapwood: Run, tmp_path: Path, read_only_world: World) -> None:
    page = tmp_path / "page.html"
    done = sapwood("report", read_only_world.state, "--data", read_only_world.test, "-o", page)
    assert (done.code, done.out) == (0, f"report: {page}\n")
    text = page.read_text("utf-8")
    assert "random:dinov2-tiny" in text
    assert text.count("data:image/") >= 9
    assert "://" not in text.replace("http://www.w3.org", ""), "needs nothing else"


def test_a_report_shows_no_pictures_of_unknown_classes(sapwood: Run, tmp_path: Path, world: World) -> None:
    assert sapwood("classes", world.state, "merge", "bee", "ant").code == 0
    done = sapwood("report", world.state, "--data", world.test, "-o", tmp_path / "page.html")
    assert done.code == 2
    assert "unknown class 'bee' in the test pictures" in done.err
    assert "'bee' is called 'ant' today." in done.err


def test_what_is_only_for_masks_is_refused(sapwood: Run, world: World, tmp_path: Path) -> None:
    done = sapwood("learn", tmp_path / "new", world.first, "--backbone", "random:dinov2-tiny", "--unlabelled", "ignore")
    assert (done.code, "--unlabelled: only for masks" in done.err) == (2, True)


def test_that_nothing_can_be_said_of_strange_pictures_is_said(
    sapwood: Run, tmp_path: Path, read_only_world: World
) -> None:
    state = tmp_path / "new"
    few = shutil.copytree(read_only_world.test, tmp_path / "few")
    assert sapwood("learn", state, few, "--backbone", "random:dinov2-tiny", "--method", "ncm").code == 0
    said = "cannot be said yet: that takes 19 pictures held out of training"
    assert said in sapwood("predict", state, few).err


@pytest.mark.parametrize("name", ["000.jpg", "mine.html"])
def test_a_report_replaces_reports_alone(sapwood: Run, tmp_path: Path, read_only_world: World, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(b"somebody's")
    done = sapwood("report", read_only_world.state, "-o", file)
    assert done.code == 2
    assert f"--output {file}: is there and no report, and would be lost; name another file" in done.err
    assert file.read_bytes() == b"somebody's"
    file.write_bytes(b"")
    for _ in range(2):
        assert sapwood("report", read_only_world.state, "-o", file).code == 0
    assert file.read_bytes().endswith(b"</html>\n")
