"""CoLoR's experts in rounds of a real network: choice, files, a killed round, the teacher, temperature, masks."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sapwood.adapters.experts import Experts
from sapwood.costs import state_cost
from sapwood.errors import Interrupted
from sapwood.learner import Learner
from sapwood.network import Teacher
from sapwood.objectives.base import Outputs
from sapwood.progress import Progress

FAST = {"epochs": 2, "batch_size": 8, "precision": "fp32", "lr": 3e-2}
CLASSES = (["ant", "bee"], ["cat", "dog"])


@pytest.fixture
def data(picture_folder: Callable[..., Path]) -> list[Path]:
    return [
        *(picture_folder(classes, 12, name=name) for classes, name in zip(CLASSES, ("first", "second"), strict=True)),
        picture_folder({"bee": 1, "eel": 1}, name="third", seed=3),
    ]


def create(path: Path, objective: str = "finetune", **settings: Any) -> Learner:
    settings = {"adapter": {"rank": 2, **settings}}
    return Learner.create(
        path, backbone="random:dinov2-tiny", method=f"experts+{objective}", image_size=28, settings=settings
    )


def images(count: int = 6) -> Tensor:
    return torch.randint(0, 256, (count, 28, 28, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(learner: Learner, batch: Tensor) -> Tensor:
    return learner.network.predict(batch)


@pytest.mark.parametrize("settings", [{}, {"identify": "first"}], ids=["frozen", "first"])
def test_rounds_and_back(settings: dict[str, Any], data: list[Path], tmp_path: Path) -> None:
    learner = create(tmp_path / "state", **settings).learn(data[0], training=FAST)
    for folder in data[1:]:  # the last brings a known and a new class, one picture each
        learner.learn(folder)
    assert [facts["classes"] for facts in learner.network.adapter.rounds] == [[0, 1], [2, 3], [1, 4]]
    together = logits(learner, images())
    alone = torch.cat([logits(learner, image[None]) for image in images()])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)
    assert (together > -math.inf).sum(1).tolist() == [2] * 6
    opened = Learner.open(tmp_path / "state")
    assert torch.equal(logits(opened, images()), together)
    folder = learner.record["tasks"][-1]["folder"]
    assert len(learner.state.tensors(f"{folder}/adapter.safetensors")["centres"]) == 2
    for classes, source in zip(CLASSES, data, strict=False):
        told = opened.predict(sorted(source.rglob("*.png")))
        own = sum(answer.label in (*classes, "eel") for answer in told)
        assert own > 0.8 * len(told)
        assert all(math.isfinite(score) for answer in told for _, score in answer.top)


def test_an_old_expert_says_what_it_said(data: list[Path], tmp_path: Path) -> None:
    learner = create(tmp_path / "state").learn(data[0], training=FAST)
    before = logits(learner, images())
    learner.learn(data[1])
    after = logits(learner, images())
    by_first = after[:, 0] > -math.inf
    assert 0 < by_first.sum() <= 6
    torch.testing.assert_close(after[by_first, :2], before[by_first], atol=1e-5, rtol=0)
    assert (after[by_first, 2:] == -math.inf).all()


def test_the_temperature_survives_pictures_that_go_to_the_wrong_expert(
    data: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = create(tmp_path / "state").learn(data[0], training=FAST)
    nearest = Experts.plan

    def plan(self: Experts, pixels: Tensor, network: Any) -> Any:
        context = nearest(self, pixels, network)
        if not self.learning and len(self.rounds) > 1:
            context.values["expert"] = torch.arange(len(pixels)) % 2
        return context

    monkeypatch.setattr(Experts, "plan", plan)
    learner.learn(data[1], training={"validation": 0.3})
    assert learner.record["tasks"][1]["validation_accuracy"] < 1
    temperature = learner.network.head.temperature
    assert 1e-3 < temperature < 1e3
    assert temperature != 1


def test_the_adapter_may_rest_after_the_first_round(data: list[Path], tmp_path: Path) -> None:
    learner = create(tmp_path / "state").learn(data[0], training={**FAST, "adapt": "first"})
    learner.learn(data[1])
    assert logits(learner, images()).isfinite().all()  # one expert has nothing to rule out
    opened = Learner.open(tmp_path / "state")
    assert len(opened.network.adapter.rounds) == 1
    assert torch.equal(logits(opened, images()), logits(learner, images()))


def test_the_teacher_chooses_among_the_rounds_before(
    data: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = create(tmp_path / "state", "lwf").learn(data[0], training=FAST).learn(data[1])
    reference = Learner.open(tmp_path / "state").network
    told: list[tuple[Tensor, Tensor]] = []
    ask = Teacher.__call__

    def ask_and_compare(teacher: Teacher, batch: Tensor) -> Outputs:
        answer = ask(teacher, batch)
        with torch.no_grad():
            told.append((answer.logits, reference(batch).logits))
        return answer

    monkeypatch.setattr(Teacher, "__call__", ask_and_compare)
    learner.learn(data[2])
    assert len(told) == 2
    assert all(torch.equal(answer, expected) for answer, expected in told)


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


def test_an_interrupted_round_goes_on(data: list[Path], tmp_path: Path) -> None:
    whole = create(tmp_path / "whole").learn(data[0], training=FAST).learn(data[1])
    broken = create(tmp_path / "broken").learn(data[0], training=FAST)
    with pytest.raises(Interrupted):
        broken.learn(data[1], progress=StopAt(3))
    broken = Learner.open(tmp_path / "broken").learn(data[1])
    one, two = (
        learner.state.tensors(f"{learner.record['tasks'][1]['folder']}/adapter.safetensors")
        for learner in (whole, broken)
    )
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_costs_are_those_of_one_expert_and_of_two_passes(data: list[Path], tmp_path: Path) -> None:
    learner, costs = create(tmp_path / "state").learn(data[0], training=FAST), []
    for folder in data[1:]:
        costs.append(state_cost(tmp_path / "state"))
        learner.learn(folder)
    costs.append(state_cost(tmp_path / "state"))
    pair = costs[0].fitted["adapter"]
    assert pair == 2 * 2 * (2 * 32 + 32 * 2)  # blocks, sites, A and B
    assert [cost.fitted["adapter"] for cost in costs] == [pair] * 3  # a round fits its own, as every other adapter
    assert costs[1].gmacs == pytest.approx(2 * costs[0].gmacs, rel=0.1)
    assert costs[2].gmacs == pytest.approx(costs[1].gmacs, rel=0.01)  # one more class
    assert costs[0].gmacs_merged is None


def test_masks_hold_classes_of_several_rounds(mask_folder: Callable[..., Path], tmp_path: Path) -> None:
    learner = Learner.create(
        tmp_path / "state", backbone="random:dinov2-tiny", method="experts+mib", kind="segmentation", image_size=28
    )
    learner.learn(mask_folder(["ant"], 6, name="one"), training=FAST).learn(mask_folder(["bee"], 6, name="two"))
    scores = logits(learner, images(3))
    assert scores.shape[:2] == (3, 3)
    assert scores.isfinite().all()
    assert torch.equal(logits(Learner.open(tmp_path / "state"), images(3)), scores)
