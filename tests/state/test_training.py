"""Checkpoints: whole or not there, newest only, checked when read."""

from __future__ import annotations

import math
import os
import random
import time
from pathlib import Path

import pytest
import torch

from sapwood.errors import StateError
from sapwood.state import State, TrainingFolder

from .helpers import start


@pytest.fixture
def training(tmp_path: Path) -> TrainingFolder:
    return State.create(tmp_path / "model", {}).training


def step_of(training: TrainingFolder) -> int | None:
    loaded = training.load()
    return None if loaded is None else int(loaded[1]["step"])


def checkpoints(training: TrainingFolder) -> list[Path]:
    return sorted(training.path.glob("checkpoint-*.safetensors"))


def test_tensors_and_meta_come_back_bit_for_bit(training: TrainingFolder) -> None:
    assert training.plan() is None
    assert training.load() is None
    training.begin({"task": "birds", "epochs": 3})
    assert training.plan() == {"task": "birds", "epochs": 3}
    assert training.load() is None
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "w": torch.randn(3, 4, generator=generator),
        "half": torch.randn(5, generator=generator).bfloat16(),
        "rng": generator.get_state(),
        "empty": torch.zeros(0),
    }
    meta = {"step": 7, "loss": math.nan, "rate": 0.1 + 0.2, "order": [3, 1, 2], "name": "Käuze"}
    training.save(tensors, meta)
    loaded = training.load()
    assert loaded is not None
    assert loaded[0].keys() == tensors.keys()
    assert all(torch.equal(loaded[0][name], tensors[name]) for name in tensors)
    assert math.isnan(loaded[1].pop("loss"))
    assert loaded[1] == {key: value for key, value in meta.items() if key != "loss"}
    training.clear()
    assert training.plan() is None
    assert training.load() is None
    assert not training.path.exists()
    training.clear()


def test_only_the_newest_is_kept(training: TrainingFolder) -> None:
    training.begin({})
    for step in range(12):
        training.save({"w": torch.full((2,), step)}, {"step": step})
        assert len(checkpoints(training)) == 1
    assert step_of(training) == 11


def test_a_torn_checkpoint_is_passed_over_for_the_one_before(training: TrainingFolder) -> None:
    training.begin({})
    training.save({"w": torch.zeros(50)}, {"step": 1})
    (first,) = checkpoints(training)
    good = first.read_bytes()
    training.save({"w": torch.ones(50)}, {"step": 2})
    (second,) = checkpoints(training)
    first.write_bytes(good)  # as if killed before the removal
    assert step_of(training) == 2
    whole = second.read_bytes()
    for torn in (whole[:-1], whole[:5], b"", whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]):
        second.write_bytes(torn)
        assert step_of(training) == 1
    first.write_bytes(b"")
    assert training.load() is None
    (training.path / ".aside-half").write_bytes(b"half")
    training.save({"w": torch.ones(1)}, {"step": 3})
    assert step_of(training) == 3
    assert len(list(training.path.iterdir())) == 2


@pytest.mark.parametrize("name", [".aside-half", ".tmpAbC123"])  # ours, and what safetensors writes before it renames
def test_what_a_killed_writer_left_goes_with_the_rest(training: TrainingFolder, name: str) -> None:
    training.begin({})
    training.save({"w": torch.zeros(1)}, {"step": 1})
    (training.path / name).write_bytes(b"half")
    training.clear()
    assert not training.path.exists()


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_who_may_read_the_plan_may_read_the_tensors(training: TrainingFolder) -> None:
    training.begin({})
    training.save({"w": torch.zeros(1)}, {"step": 1})
    plan, (checkpoint,) = training.path / "plan.json", checkpoints(training)
    assert checkpoint.stat().st_mode == plan.stat().st_mode


def test_a_new_plan_drops_the_old_checkpoint(training: TrainingFolder) -> None:
    training.begin({"task": "birds"})
    training.save({}, {"step": 1})
    training.begin({"task": "fish"})
    assert training.plan() == {"task": "fish"}
    assert training.load() is None


def test_a_checkpoint_without_a_plan_is_nothing(training: TrainingFolder) -> None:
    training.begin({})
    training.save({}, {"step": 1})
    (training.path / "plan.json").unlink()
    assert training.load() is None


@pytest.mark.parametrize("text", ["", "[1]", '{"task"'])
def test_a_damaged_plan_names_the_way_out(training: TrainingFolder, text: str) -> None:
    training.begin({"task": "birds"})
    (training.path / "plan.json").write_text(text)
    with pytest.raises(StateError, match=r"plan\.json is damaged .*--restart"):
        training.plan()
    training.begin({"task": "birds"})
    assert training.plan() == {"task": "birds"}


SAVER = """
import sys, torch
from sapwood.state import State
training = State.open(sys.argv[1]).training
print("ready", flush=True)
step = 0
while True:
    step += 1
    training.save({"w": torch.full((20_000,), float(step))}, {"step": step})
    print(step, flush=True)
"""


def test_killed_while_saving_the_last_saved_checkpoint_or_the_next_is_there(training: TrainingFolder) -> None:
    training.begin({"task": "birds"})
    saver = start(SAVER, training.path.parent)
    assert saver.stdout is not None
    assert saver.stdout.readline() == "ready\n"
    time.sleep(random.SystemRandom().uniform(0.05, 0.2))
    saver.kill()
    told = saver.communicate()[0].split()
    last = int(told[-1]) if told else 0
    loaded = training.load()
    step = int(loaded[1]["step"]) if loaded else 0
    assert step in (last, last + 1)
    if loaded:
        assert torch.equal(loaded[0]["w"], torch.full((20_000,), float(step)))
