"""The interface carries what later adapters need: three toys, each of another kind, through the whole path.

One chooses an expert per picture before the forward, one gates its change by the input and scales the logits by the
gates, one folds its finished past into the weights and owns a magnitude that all sites share.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sapwood.adapters import ADAPTERS
from sapwood.errors import Interrupted, NotMergeable
from sapwood.learner import Learner
from sapwood.network import Teacher
from sapwood.objectives.base import Outputs
from sapwood.progress import Progress

from .toys import TOYS

FAST = {"epochs": 3, "batch_size": 8, "precision": "fp32", "lr": 1e-2}


every_toy = pytest.mark.parametrize("name", TOYS)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, entry in TOYS.items():
        monkeypatch.setitem(ADAPTERS._entries, name, entry)


@pytest.fixture
def data(picture_folder: Callable[..., Path]) -> tuple[Path, Path]:
    return picture_folder(["ant", "bee"], 8, name="first"), picture_folder(["cat", "dog"], 8, name="second")


def create(path: Path, name: str, objective: str = "finetune") -> Learner:
    return Learner.create(path, backbone="random:dinov2-tiny", method=f"{name}+{objective}", image_size=28)


def images(count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 28, 28, 3), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def logits(learner: Learner, batch: Tensor) -> Tensor:
    return learner.network.predict(batch)


@every_toy
@pytest.mark.parametrize("objective", ["finetune", "lwf", "ewc"])
def test_two_rounds_and_back(name: str, objective: str, data: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "state"
    learner = create(path, name, objective).learn(data[0], training=FAST).learn(data[1])
    together = logits(learner, images())
    torch.testing.assert_close(
        torch.cat([logits(learner, image[None]) for image in images()]), together, atol=1e-5, rtol=0
    )
    opened = Learner.open(path)
    assert torch.equal(logits(opened, images()), together)
    files = [opened.state.tensors(f"{task['folder']}/adapter.safetensors") for task in opened.record["tasks"]]
    assert files[0].keys() == files[1].keys()
    assert any(not torch.equal(files[0][key], files[1][key]) for key in files[0])


@every_toy
def test_the_change_is_merged_or_refused(name: str, data: tuple[Path, Path], tmp_path: Path) -> None:
    learner = create(tmp_path / "state", name).learn(data[0], training=FAST).learn(data[1])
    before = logits(learner, images())
    if TOYS[name].mergeable:
        torch.testing.assert_close(logits(learner.merge(), images()), before, atol=1e-5, rtol=0)
        learner.network.unmerge()
    else:
        with pytest.raises(NotMergeable):
            learner.merge()
    assert torch.equal(logits(learner, images()), before)
    with learner.network.bare():
        bare = learner.network.backbone(torch.zeros(1, 3, 28, 28)).pooled
    learner.network.refold()
    changed = learner.network.tokens(torch.zeros(1, 28, 28, 3, dtype=torch.uint8))[0].pooled
    assert not torch.equal(bare, changed)


_WHOLE: dict[str, Learner] = {}  # by name: both rounds undisturbed, of the same pictures


class StopAt(Progress):
    """Asks this process to stop at a training step."""

    def __init__(self, step: int) -> None:
        self.left, self.training = step, False

    def start(self, what: str, total: int, done: int = 0) -> None:
        self.training = what == "training"

    def advance(self, units: int, **facts: float) -> None:
        self.left -= self.training
        if self.training and self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


@every_toy
@pytest.mark.parametrize("step", [1, 4, 6])
def test_an_interrupted_round_goes_on(name: str, step: int, data: tuple[Path, Path], tmp_path: Path) -> None:
    if name not in _WHOLE:
        _WHOLE[name] = create(tmp_path / "whole", name).learn(data[0], training=FAST).learn(data[1])
    broken = create(tmp_path / "broken", name).learn(data[0], training=FAST)
    with pytest.raises(Interrupted):
        broken.learn(data[1], progress=StopAt(step))
    assert len(broken.record["tasks"]) == 1
    broken = Learner.open(tmp_path / "broken").learn(data[1])
    for part in ("adapter", "head"):
        one, two = (
            learner.state.tensors(f"{learner.record['tasks'][1]['folder']}/{part}.safetensors")
            for learner in (_WHOLE[name], broken)
        )
        assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("name", ["lora", "full", *TOYS])
def test_the_teacher_is_the_network_before_the_round(
    name: str, data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the whole round, while the student moves, the teacher says what the network said before it."""
    learner = create(tmp_path / "state", name, "lwf").learn(data[0], training=FAST)
    reference = Learner.open(tmp_path / "state").network
    told: list[tuple[Tensor, Tensor]] = []
    ask = Teacher.__call__

    def ask_and_compare(teacher: Teacher, batch: Tensor) -> Outputs:
        answer = ask(teacher, batch)
        with torch.no_grad():
            told.append((answer.logits, reference(batch).logits))
        return answer

    monkeypatch.setattr(Teacher, "__call__", ask_and_compare)
    learner.learn(data[1])
    assert len(told) == 3 * 2
    for answer, expected in told:
        assert answer.shape[1] == 2
        assert torch.equal(answer, expected)


def test_each_picture_takes_the_expert_of_its_round(data: tuple[Path, Path], tmp_path: Path) -> None:
    learner = create(tmp_path / "state", "toy-experts").learn(data[0], training=FAST).learn(data[1])
    chosen = []
    adapter = learner.network.adapter
    plan = adapter.plan
    adapter.plan = lambda pixels, network: chosen.append(plan(pixels, network)) or chosen[-1]  # type: ignore[func-returns-value]
    learner.predict([*sorted(data[0].rglob("*.png")), *sorted(data[1].rglob("*.png"))])
    experts = torch.cat([context.values["expert"] for context in chosen])
    assert (experts == torch.tensor([0] * 16 + [1] * 16)).float().mean() > 0.8
    assert learner.network.slot.context.values == {}  # nothing stays behind on the network
