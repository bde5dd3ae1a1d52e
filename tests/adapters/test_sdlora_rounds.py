"""SD-LoRA through the learner: rounds stopped and opened, and a teacher on the same weights."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sapwood.errors import Interrupted
from sapwood.learner import Learner
from sapwood.network import Teacher
from sapwood.objectives.base import Outputs
from sapwood.progress import Progress

TINY, SIZE = "random:dinov2-tiny", 28
FAST = {"epochs": 3, "batch_size": 8, "precision": "fp32", "lr": 1e-2}


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


@pytest.fixture
def folders(picture_folder: Callable[..., Path]) -> list[Path]:
    classes = (["ant", "bee"], ["cat", "dog"], ["eel", "fox"])
    return [picture_folder(names, 8, name=names[0]) for names in classes]


def create(path: Path, objective: str = "finetune", **settings: Any) -> Learner:
    return Learner.create(
        path,
        backbone=TINY,
        method=f"sdlora+{objective}",
        image_size=SIZE,
        settings={"adapter": {"rank": 4, "later_ranks": (3,), "rank_every": 1, **settings}},
    )


@pytest.mark.parametrize(("objective", "carry"), [("finetune", False), ("ewc", True)])
def test_rounds_stopped_and_opened(objective: str, carry: bool, folders: list[Path], tmp_path: Path) -> None:
    whole, broken = (
        create(tmp_path / name, objective, carry_magnitudes=carry).learn(folders[0], training=FAST).learn(folders[1])
        for name in ("whole", "broken")
    )
    whole.learn(folders[2])
    with pytest.raises(Interrupted):
        broken.learn(folders[2], progress=StopAt(2))
    broken = Learner.open(tmp_path / "broken").learn(folders[2])
    one, two = (
        each.state.tensors(f"{each.record['tasks'][2]['folder']}/adapter.safetensors") for each in (whole, broken)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert one["up.block_0_q"].any()
    assert len(one["down.block_0_q"]) == 3
    images = torch.randint(0, 256, (5, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = whole.network.predict(images)
        alone = torch.cat([whole.network.predict(image[None]) for image in images])
        torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)
        opened = Learner.open(tmp_path / "whole")
        assert torch.equal(opened.network.predict(images), together)
        torch.testing.assert_close(opened.merge().network.predict(images), together, atol=1e-5, rtol=0)


@pytest.mark.parametrize("carry", [True, False])
def test_the_teacher_keeps_the_magnitudes_of_before(
    carry: bool, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = create(tmp_path / "state", "lwf", carry_magnitudes=carry).learn(folders[0], training=FAST)
    learner.learn(folders[1], training={"epochs": 1})
    reference = Learner.open(tmp_path / "state").network
    told: list[tuple[Tensor, Tensor]] = []
    ask = Teacher.__call__

    def ask_and_compare(teacher: Teacher, batch: Tensor) -> Outputs:
        answer = ask(teacher, batch)
        with torch.no_grad():
            told.append((answer.logits, reference(batch).logits))
        return answer

    monkeypatch.setattr(Teacher, "__call__", ask_and_compare)
    learner.learn(folders[2])
    assert told
    assert all(torch.equal(answer, expected) for answer, expected in told)
