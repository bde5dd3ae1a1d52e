"""The JSON that scripts rely on: these keys, these units, and nothing else on stdout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sapwood.adapters import ADAPTERS
from sapwood.heads import HEADS
from sapwood.methods import METHODS
from sapwood.objectives import OBJECTIVES

from .conftest import Run, World


def test_show(sapwood: Run, read_only_world: World) -> None:
    shown = sapwood("show", read_only_world.state, "--json")
    assert (shown.code, shown.err) == (0, "")
    facts = shown.json
    assert facts.keys() >= {"format", "version", "method", "backbone", "classes", "tasks", "accuracy"}
    assert (facts["format"], facts["method"], facts["backbone"]) == (1, "ncm", "random:dinov2-tiny")
    assert facts["version"].startswith("v0003-")
    assert facts["classes"] == ["ant", "bee", "cow"]
    assert [task["name"] for task in facts["tasks"]] == ["insects", "task-2"]
    assert [task["classes"] for task in facts["tasks"]] == [["ant", "bee"], ["ant", "cow"]]
    assert [task["images"] for task in facts["tasks"]] == [24, 16]
    first, second = facts["accuracy"]
    assert (len(first), len(second)) == (1, 2)
    assert all(0 <= cell <= 1 for cell in (*first, *second))
    assert all(task["seconds"] >= 0 and task["trainable_parameters"] == 0 for task in facts["tasks"])


def test_bytes_are_those_of_the_tasks_files(sapwood: Run, read_only_world: World) -> None:
    tasks = sapwood("show", read_only_world.state, "--json").json["tasks"]
    folders = sorted((read_only_world.state / "tasks").iterdir())
    assert [task["bytes"] for task in tasks] == [
        sum(file.stat().st_size for file in folder.iterdir()) for folder in folders
    ]


def test_show_versions(sapwood: Run, read_only_world: World) -> None:
    facts = sapwood("show", read_only_world.state, "--versions", "--json").json
    assert [row["note"] for row in facts["versions"]] == ["created", "learn insects", "learn task-2"]
    assert facts["versions"][-1]["id"] == facts["version"]


def test_predict(sapwood: Run, read_only_world: World) -> None:
    files = [read_only_world.test / name for name in ("cow/00.png", "ant/01.png")]
    done = sapwood("predict", read_only_world.state, *files, read_only_world.test / "bee", "--json", "--top", "2")
    assert done.code == 0
    answer = done.json
    assert answer.keys() >= {"version", "predictions"}
    predictions = answer["predictions"]
    bees = [str(read_only_world.test / "bee" / f"0{index}.png") for index in range(3)]
    assert [one["path"] for one in predictions] == [*map(str, files), *bees], "in the order given"
    for one in predictions:
        assert one.keys() >= {"path", "class", "score", "known", "top"}
        assert [best.keys() for best in one["top"]] == [{"class", "score"}] * 2
        assert one["top"][0] == {"class": one["class"], "score": one["score"]}
        assert 1 >= one["top"][0]["score"] >= one["top"][1]["score"] >= 0
    assert [one["class"] for one in predictions] == ["cow", "ant", "bee", "bee", "bee"]


def test_evaluate(sapwood: Run, read_only_world: World) -> None:
    measured = sapwood("evaluate", read_only_world.state, read_only_world.test, "--json").json
    assert measured.keys() >= {"version", "images", "accuracy", "per_class", "per_task", "confusion"}
    assert measured.keys() >= {"balanced_accuracy", "top_confusions", "worst", "ece", "calibrated", "accepted"}
    assert measured["images"] == 9
    assert measured["per_class"].keys() == {"ant", "bee", "cow"}
    assert measured["per_task"].keys() == {"insects", "task-2"}
    assert [sum(row) for row in measured["confusion"]] == [3, 3, 3]
    assert measured["accuracy"] == pytest.approx(sum(measured["confusion"][i][i] for i in range(3)) / 9)


def test_learn_tells_what_show_tells(sapwood: Run, world: World) -> None:
    learned = sapwood("learn", world.state, world.first, "--json", "--task", "again", "--relearn")
    assert learned.code == 0
    assert "estimate: " in learned.err
    assert learned.json == sapwood("show", world.state, "--json").json
    assert learned.json["tasks"][2]["name"] == "again"


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        ("methods", {"name", "adapter", "objective", "head", "growth", "merges", "upper_bound", "reference", "bytes"}),
        ("backbones", {"name", "family", "licence", "source"}),
        ("benchmarks", {"name", "description", "where"}),
    ],
)
def test_listings(sapwood: Run, command: str, keys: set[str]) -> None:
    listed = sapwood(command, "--json").json
    assert listed.keys() == {command}
    assert all(entry.keys() >= keys for entry in listed[command])
    plain = sapwood(command)
    assert plain.code == 0
    assert all(entry["name"] in plain.out for entry in listed[command])


def test_the_matrix_says_which_parts_go_together_and_why_others_do_not(sapwood: Run) -> None:
    listed = sapwood("methods", "--matrix", "--json").json
    assert len(listed["combinations"]) == len(ADAPTERS) * len(OBJECTIVES) * len(HEADS)
    assert all(entry["legal"] == (entry["reason"] is None) for part in listed.values() for entry in part)
    refused = {(one["objective"], one["head"]): one["reason"] for one in listed["combinations"] if not one["legal"]}
    assert refused["sats", "ridge"] == "objective sats is for segmentation, head ridge for classification"
    assert {head for objective, head in refused if objective == "plop"} == set(HEADS) - {"dense"}
    networks = {(one["name"], one["network"]): one["reason"] for one in listed["networks"]}
    assert networks["lora", "ResNet"] is networks["sats", "MiT"] is None
    assert networks["sats", "ResNet"] == "objective sats compares attention maps, and ResNet shows none"
    assert networks["routed", "ResNet"].endswith("ResNet has convolutional ones; take full, lora, none")
    shown = sapwood("methods", "--matrix").out
    assert "1) the objective is for segmentation, the head for classification\n" in shown
    assert shown.count("\nsats ") == 2  # against heads, and against networks


def test_methods_say_what_they_store(sapwood: Run) -> None:
    listed = {entry["name"]: entry for entry in sapwood("methods", "--json").json["methods"]}
    assert set(listed) == set(METHODS)
    width, classes, rank = 384, 10, 16
    head = 4 * classes * (width + 1)
    lora = 4 * 12 * 2 * rank * 2 * width
    known = 8 * (classes * (width + 1) + width * (width + 1) // 2)
    assert listed["seq-lora"]["bytes"] == lora + head + known
    parameters = 3 * (lora + head)  # themselves, their Fisher diagonal, their anchor
    assert listed["lora+ewc"]["bytes"] == parameters + known
    assert listed["full-finetune"]["stores_backbone"]
    assert listed["full-finetune"]["bytes"] == pytest.approx(88.3e6, rel=0.01)
    assert [name for name, entry in listed.items() if entry["upper_bound"]] == ["joint", "joint-full"]
    growing = ("clora-reinit", "color", "dual-lora", "inflora", "o-lora", "sd-lora")
    assert {name for name, entry in listed.items() if entry["keeps_rounds"]} == {
        name for name in listed if name.startswith(growing)
    }
    assert "each round stores the whole backbone" in sapwood("methods").out


@pytest.mark.parametrize("name", ["é è.png", "a.b.c.png", "sn\u2603w 🐝.png"])
def test_odd_file_names_survive(sapwood: Run, read_only_world: World, tmp_path: Path, name: str) -> None:
    picture = tmp_path / name
    picture.write_bytes((read_only_world.test / "bee" / "00.png").read_bytes())
    done = sapwood("predict", read_only_world.state, picture, "--json")
    assert done.out.isascii()
    assert json.loads(done.out)["predictions"][0]["path"] == str(picture)
    assert name in sapwood("predict", read_only_world.state, picture).out
