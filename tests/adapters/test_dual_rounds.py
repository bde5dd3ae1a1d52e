"""DualLoRA through rounds as a user learns them: trained by AdamW, stored, opened, interrupted, with other parts."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sapwood.adapters import ADAPTERS
from sapwood.adapters.dual import Dual
from sapwood.errors import Interrupted, NotMergeable
from sapwood.learner import Learner
from sapwood.network import Teacher
from sapwood.objectives.base import Outputs
from sapwood.progress import Progress

FAST = {"epochs": 2, "batch_size": 8, "precision": "fp32", "lr": 3e-2}
Settings = dict[str, Any]
OPTIONS: dict[str, Settings] = {
    "default": {},
    "current": {"residual_basis": "current", "energy": 0.9995, "expected_tasks": 2},
    "open": {"gates": False, "calibration": 0.0},
    "orthogonal": {"residual": False, "calibration": 0.0, "freeze_down": True, "moments": "all"},
    "mean": {"token": "mean", "residual": False},
}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ADAPTERS._entries, "dual", Dual)


@pytest.fixture
def data(picture_folder: Callable[..., Path]) -> tuple[Path, Path]:
    return picture_folder(["ant", "bee"], 8, name="first"), picture_folder(["cat", "dog"], 8, name="second")


def create(path: Path, objective: str = "finetune", **adapter: Any) -> Learner:
    settings = {"adapter": {"rank": 4, **adapter}}
    return Learner.create(
        path, backbone="random:dinov2-tiny", method=f"dual+{objective}", image_size=28, settings=settings
    )


def images(count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 28, 28, 3), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def logits(learner: Learner, batch: Tensor) -> Tensor:
    return learner.network.predict(batch)


def tensors_of(learner: Learner, task: int, part: str = "adapter") -> dict[str, Tensor]:
    return learner.state.tensors(f"{learner.record['tasks'][task]['folder']}/{part}.safetensors")


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_two_rounds_and_back(options: Settings, data: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "state"
    learner = create(path, **options).learn(data[0], training=FAST).learn(data[1])
    together = logits(learner, images())
    alone = torch.cat([logits(learner, image[None]) for image in images()])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)
    opened = Learner.open(path)
    assert torch.equal(logits(opened, images()), together)
    third = opened.learn(data[0], task="again", relearn=True)  # known classes only
    assert torch.equal(logits(Learner.open(path), images()), logits(third, images()))
    adapter = third.network.adapter
    assert adapter.members.int().sum(0).tolist() == [2, 2, 1, 1]
    before = logits(third, images())
    if adapter.mergeable:
        torch.testing.assert_close(logits(third.merge(), images()), before, atol=1e-5, rtol=0)
    else:
        with pytest.raises(NotMergeable):
            third.merge()
        assert torch.equal(logits(third, images()), before)


def test_adamw_leaves_earlier_directions_alone(data: tuple[Path, Path], tmp_path: Path) -> None:
    learner = create(tmp_path / "state", energy=0.9995).learn(data[0], training={**FAST, "weight_decay": 0.1})
    learner.learn(data[1])
    first, second = tensors_of(learner, 0), tensors_of(learner, 1)
    for site in learner.network.adapter.sites:
        key, layer = site.name.replace(".", "_"), "layer_" + site.input_key.replace(".", "_")
        basis = first[f"basis.{layer}"].double()
        change = second[f"up.{key}"].double() @ second[f"down.{key}"].double()
        assert (change @ basis).norm() <= 1e-6
        residual = second[f"residual_up.{key}"].double() @ second[f"residual_down.{key}"].double()
        torch.testing.assert_close(residual @ basis @ basis.T, residual, atol=1e-6, rtol=0)
        if site.block == 1:
            assert min(change.norm(), residual.norm(), basis.shape[1]) > 1e-2
    assert not any("residual" in name for name in first)


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


@pytest.mark.parametrize(("step", "options"), [(1, OPTIONS["current"]), (3, OPTIONS["default"])], ids=["early", "late"])
def test_an_interrupted_round_goes_on(step: int, options: Settings, data: tuple[Path, Path], tmp_path: Path) -> None:
    whole = create(tmp_path / "whole", **options).learn(data[0], training=FAST).learn(data[1])
    broken = create(tmp_path / "broken", **options).learn(data[0], training=FAST)
    with pytest.raises(Interrupted):
        broken.learn(data[1], progress=StopAt(step))
    broken = Learner.open(tmp_path / "broken").learn(data[1])
    for part in ("adapter", "head"):
        one, two = tensors_of(whole, 1, part), tensors_of(broken, 1, part)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_the_teacher_is_the_network_before_the_round(
    data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    learner.learn(data[0], task="again", relearn=True)
    assert len(told) == 2 * 2
    assert all(torch.equal(answer, expected) for answer, expected in told)


def test_a_round_in_which_only_the_head_learns_adds_nothing(data: tuple[Path, Path], tmp_path: Path) -> None:
    learner = create(tmp_path / "state").learn(data[0], training={**FAST, "adapt": "first"}).learn(data[1])
    assert len(learner.network.adapter.past) == 1
    opened = Learner.open(tmp_path / "state")
    assert len(opened.network.adapter.past) == 1
    assert torch.equal(logits(opened, images()), logits(learner, images()))


def test_masks_and_solved_heads(mask_folder: Callable[..., Path], data: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = mask_folder(["road", "car"], 6, name="one"), mask_folder(["tree"], 6, name="two", also=["car"])
    learner = Learner.create(
        tmp_path / "masks", backbone="random:dinov2-tiny", method="dual+mib", kind="segmentation", image_size=28
    )
    learner.learn(first, training=FAST).learn(second)
    scores = logits(learner, images())
    assert scores.shape == (6, 4, 2, 2)
    with torch.no_grad():
        tokens, _ = learner.network.tokens(images())
        plain = learner.network.head(tokens)
    assert torch.equal(scores[:, 0], plain[:, 0])  # background
    shift = scores - plain
    assert shift[:, 1:].amin() < 0
    torch.testing.assert_close(shift, shift[:, :, :1, :1].expand_as(shift), atol=1e-5, rtol=0)
    solved = Learner.create(
        tmp_path / "ridge", backbone="random:dinov2-tiny", method="dual+finetune", head="ridge", image_size=28
    )
    solved.learn(data[0], training=FAST).learn(data[1])
    assert torch.equal(logits(Learner.open(tmp_path / "ridge"), images()), logits(solved, images()))
