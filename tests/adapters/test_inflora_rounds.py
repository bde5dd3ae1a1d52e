"""InfLoRA in rounds of a real network: what is protected stays, files bring it back, a killed round goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sapwood.adapters.inflora import InfLora
from sapwood.errors import Interrupted
from sapwood.learner import Learner
from sapwood.progress import Progress
from sapwood.task import Task

FAST = {"epochs": 2, "batch_size": 8, "precision": "fp32", "lr": 3e-2}


@pytest.fixture
def data(picture_folder: Callable[..., Path]) -> list[Path]:
    return [
        picture_folder(["ant", "bee"], 8, name="first"),
        picture_folder(["cat", "dog"], 8, name="second"),
        picture_folder({"eel": 1}, name="third"),
    ]


def create(path: Path, objective: str = "finetune", **settings: Any) -> Learner:
    settings = {"adapter": {"rank": 3, **settings}}
    return Learner.create(
        path, backbone="random:dinov2-tiny", method=f"inflora+{objective}", image_size=28, settings=settings
    )


def images(count: int = 5) -> Tensor:
    return torch.randint(0, 256, (count, 28, 28, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(learner: Learner, batch: Tensor) -> Tensor:
    return learner.network.predict(batch)


@pytest.mark.parametrize("objective", ["finetune", "lwf"])
def test_rounds_and_back(objective: str, data: list[Path], tmp_path: Path) -> None:
    learner = create(tmp_path / "state", objective).learn(data[0], training=FAST)
    for folder in data[1:]:  # the last brings a single picture of one class
        learner.learn(folder)
    together = logits(learner, images())
    alone = torch.cat([logits(learner, image[None]) for image in images()])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)
    opened = Learner.open(tmp_path / "state")
    assert torch.equal(logits(opened, images()), together)
    torch.testing.assert_close(logits(opened.merge(), images()), together, atol=1e-5, rtol=0)
    opened.network.unmerge()
    assert torch.equal(logits(opened, images()), together)


def test_a_round_moves_nothing_that_is_protected_and_the_boundary_is_smooth(
    data: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = create(tmp_path / "state").learn(data[0], training=FAST)
    at_start: list[Tensor] = []
    finished: list[tuple[Tensor, Tensor]] = []
    begin, end = InfLora.before_task, InfLora.after_task

    def before_task(self: InfLora, task: Task, statistics: Any) -> None:
        old = statistics.network.tokens(images())[0].pooled
        begin(self, task, statistics)
        statistics.network.refold()
        at_start.extend([old, statistics.network.tokens(images())[0].pooled])

    def after_task(self: InfLora, task: Task, statistics: Any) -> None:
        with torch.no_grad():
            old = statistics.network.tokens(images())[0].pooled
            end(self, task, statistics)
            statistics.network.refold()
            finished.append((old, statistics.network.tokens(images())[0].pooled))

    monkeypatch.setattr(InfLora, "before_task", before_task)
    monkeypatch.setattr(InfLora, "after_task", after_task)
    adapter = learner.network.adapter
    protected = {key: bases.vectors.clone() for key, bases in adapter.bases.items()}
    assert {bases.kind for bases in adapter.bases.values()} == {"remove"}
    weights = {each.name: adapter.dense(each) for each in adapter.sites}
    assert all(change.abs().max() > 1e-3 for change in weights.values())
    learner.learn(data[1])
    assert torch.equal(*at_start)  # B = 0
    torch.testing.assert_close(*finished[0], atol=1e-5, rtol=0)  # from beside the weights into them
    for each in adapter.sites:
        change = (learner.network.adapter.dense(each) - weights[each.name]).double()
        assert change.abs().max() > 1e-3
        assert (change @ protected[each.input_key]).abs().max() < 1e-6


def test_the_protected_are_the_leading_directions_of_what_the_layers_saw(data: list[Path], tmp_path: Path) -> None:
    """Through the weights that the round has learned, not those it began with."""
    learner = create(tmp_path / "state").learn(data[0], training={**FAST, "validation": 0.0})
    network, seen = learner.network, []
    (layer,) = (layer for layer in network.adapted if layer.sites[0].name == "block.1.v")
    handle = layer.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach().double()))
    learner.predict(sorted(data[0].rglob("*.png")))
    handle.remove()
    rows = torch.cat(seen).flatten(0, 1).numpy()
    left, values, _ = np.linalg.svd(rows.T @ rows)
    count = max(1, sum((values**2).cumsum() / (values**2).sum() < 0.95))
    found = network.adapter.bases["block.1.attn"].vectors[:, :count].numpy()
    assert network.adapter.bases["block.1.attn"].vectors.shape[1] == count
    assert np.allclose(found @ found.T, left[:, :count] @ left[:, :count].T, atol=1e-3)


def test_a_forward_costs_the_same_in_every_round(data: list[Path], tmp_path: Path) -> None:
    learner, counts = create(tmp_path / "state").learn(data[0], training=FAST), []
    for folder in data[1:]:
        with FlopCounterMode(display=False) as counter:
            learner.network.tokens(images())[0].pooled.sum().backward()
        counts.append(counter.get_total_flops())
        learner.learn(folder)
    assert len(set(counts)) == 1


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


def test_masks_too(mask_folder: Callable[..., Path], tmp_path: Path) -> None:
    learner = Learner.create(
        tmp_path / "state",
        backbone="random:dinov2-tiny",
        method="inflora+mib",
        kind="segmentation",
        image_size=(28, 42),
    )
    learner.learn(mask_folder(["ant"], 6, name="one"), training=FAST | {"epochs": 1}).learn(
        mask_folder(["bee"], 6, name="two")
    )
    assert logits(learner, images(2).repeat(1, 1, 2, 1)[:, :, :42]).shape[1] == 3
