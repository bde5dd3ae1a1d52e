"""O-LoRA: its penalty by hand, rounds that end up orthogonal, the past in the weights, and real rounds."""

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

from sapwood.adapters.base import Context
from sapwood.adapters.orthogonal import Orthogonal, OrthogonalConfig
from sapwood.backbones import create_backbone
from sapwood.errors import ConfigError, Interrupted
from sapwood.heads import HEADS
from sapwood.learner import Learner
from sapwood.network import Network
from sapwood.progress import Progress
from sapwood.task import Task

TINY, SIZE = "random:dinov2-tiny", 28
TASKS = [Task(index, str(index), (index,), (index,), index + 1, seed=5) for index in range(4)]
FAST = {"epochs": 3, "batch_size": 8, "precision": "fp32", "lr": 1e-2}


def adapter_of(**settings: Any) -> Orthogonal:
    backbone = create_backbone(TINY, SIZE)
    return Orthogonal(OrthogonalConfig(**{"rank": 3, "alpha": 6.0, **settings}), backbone.sites, backbone.info)


def fill(adapter: Orthogonal, seed: int) -> dict[str, Tensor]:
    """Stand in for training: every live tensor moves; all of them as they then are."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return {name: tensor.clone() for name, tensor in adapter.state_dict().items()}


def learn(adapter: Orthogonal, rounds: int) -> list[dict[str, Tensor]]:
    learned = []
    for task in TASKS[:rounds]:
        adapter.before_task(task, None)
        learned.append(fill(adapter, task.index))
        adapter.after_task(task, None)
    return learned


def by_hand(adapter: Orthogonal, olds: list[dict[str, Tensor]]) -> tuple[float, float, float]:
    """Sum of absolute and of squared products of rows, and of the norms of the live factors."""
    absolute = squared = norms = 0.0
    live = adapter.state_dict()
    for site in adapter.sites:
        key = site.name.replace(".", "_")
        for new in live[f"down.{key}"]:
            for old in olds:
                for row in old[f"down.{key}"]:
                    product = float(np.dot(row.double().numpy(), new.double().numpy()))
                    absolute, squared = absolute + abs(product), squared + product**2
        norms += sum(np.linalg.norm(live[f"{name}.{key}"].double().numpy()) for name in ("down", "up"))
    return absolute, squared, norms


@pytest.mark.parametrize("entries", ["absolute", "squared"])
def test_penalty_by_hand(entries: Any) -> None:
    adapter = adapter_of(l1=0.4, l2=0.3, entries=entries)
    olds = learn(adapter, 2)
    adapter.before_task(TASKS[2], None)
    fill(adapter, 9)
    absolute, squared, norms = by_hand(adapter, olds)
    penalty = adapter.penalty()
    expected = 0.4 * (absolute if entries == "absolute" else squared) + 0.3 * norms
    assert penalty.item() == pytest.approx(expected, rel=1e-5)
    penalty.backward()
    assert all(factor.grad.any() for factor in adapter.parameters())


def test_where_there_is_nothing_to_punish() -> None:
    adapter = adapter_of()
    assert adapter.penalty() is None
    adapter.before_task(TASKS[0], None)
    assert adapter.penalty() is None  # l1 asks for a past, l2 is off
    fill(adapter, 0)
    adapter.after_task(TASKS[0], None)
    assert adapter.penalty() is None
    adapter.before_task(TASKS[1], None)
    penalty = adapter.penalty()
    penalty.backward()
    assert penalty.item() > 0
    assert all(up.grad is None for up in adapter.up.values())
    free = adapter_of(l1=0.0)
    learn(free, 1)
    free.before_task(TASKS[1], None)
    assert free.penalty() is None
    shrinking = adapter_of(l2=1.0)
    shrinking.before_task(TASKS[0], None)
    penalty = shrinking.penalty()  # the norm of B = 0 has a gradient
    penalty.backward()
    assert penalty.item() == pytest.approx(by_hand(shrinking, [])[2], rel=1e-5)
    assert all(factor.grad.isfinite().all() for factor in shrinking.parameters())


def test_the_penalty_makes_rounds_orthogonal() -> None:
    adapter = adapter_of(entries="squared", l1=1.0)
    olds = learn(adapter, 2)
    adapter.before_task(TASKS[2], None)
    before = by_hand(adapter, olds)[0]
    optimiser = torch.optim.SGD(adapter.down.values(), lr=0.1)
    for _ in range(200):
        optimiser.zero_grad()
        adapter.penalty().backward()
        optimiser.step()
    assert before > 1
    assert by_hand(adapter, olds)[0] < 1e-2 * before
    assert min(factor.norm() for factor in adapter.down.values()) > 0.3  # not by vanishing


@torch.no_grad()
def test_finished_rounds_are_in_the_weights_and_a_new_one_starts_where_they_end() -> None:
    backbone = create_backbone(TINY, SIZE)
    pixels = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    plain = backbone(pixels).pooled
    adapter = Orthogonal(OrthogonalConfig(rank=3, alpha=6.0), backbone.sites, backbone.info)
    network = Network(backbone, adapter, HEADS["linear"](HEADS["linear"].Config(), backbone.info.dim))
    (layer,) = (layer for layer in network.adapted if layer.sites[0].name == "block.1.v")
    site, key = layer.sites[0], "block_1_v"
    past = torch.zeros(site.outputs, site.inputs, dtype=torch.float64)
    now = plain
    for task in TASKS[:3]:
        adapter.before_task(task, None)
        network.refold()
        assert torch.equal(network.backbone(pixels).pooled, now)  # the boundary
        learned = fill(adapter, task.index)
        past += 2.0 * learned[f"up.{key}"].double() @ learned[f"down.{key}"].double()
        now = network.backbone(pixels).pooled
        torch.testing.assert_close(adapter.dense(site).double(), past, atol=1e-6, rtol=0)
        adapter.after_task(task, None)
        network.refold()
        torch.testing.assert_close(network.backbone(pixels).pooled, now, atol=1e-5, rtol=0)
        now = network.backbone(pixels).pooled
        torch.testing.assert_close(layer.changed.double(), layer.base.weight.double() + past, atol=1e-6, rtol=0)
        assert adapter(site, torch.ones(2, site.inputs), Context()) is None  # between rounds nothing is live
    assert (now - plain).abs().max() > 1e-3
    network.merge()
    torch.testing.assert_close(network.backbone(pixels).pooled, now, atol=1e-5, rtol=0)
    network.unmerge()
    assert torch.equal(network.backbone(pixels).pooled, now)


def test_each_round_stores_its_own_pair_and_all_are_needed() -> None:
    adapter = adapter_of()
    empty = adapter.state()[0]
    history, sizes = [], set()
    for task in TASKS[:3]:
        adapter.before_task(task, None)
        learned = fill(adapter, task.index)
        adapter.after_task(task, None)
        tensors, meta = adapter.state()
        assert all(torch.equal(tensors[name], learned[name]) for name in learned)
        history.append(({name: tensor.clone() for name, tensor in tensors.items()}, meta))
        sizes.add(sum(tensor.numel() for tensor in tensors.values()))
    width = adapter.sites[0].inputs
    assert sizes == {len(adapter.sites) * 2 * 3 * width} == {sum(tensor.numel() for tensor in empty.values())}
    assert sum(parameter.numel() for parameter in adapter.parameters()) in sizes
    opened = adapter_of()
    assert all(opened.folded(site) is None for site in opened.sites)
    opened.load(history)
    assert all(torch.equal(adapter.folded(site), opened.folded(site)) for site in adapter.sites)
    assert all(torch.equal(tensor, history[-1][0][name]) for name, tensor in opened.state()[0].items())
    for each in (adapter, opened):
        each.before_task(TASKS[3], None)
    assert torch.equal(adapter.penalty(), opened.penalty())
    assert all(torch.equal(one, two) for one, two in zip(adapter.parameters(), opened.parameters(), strict=True))
    assert list(adapter.persistent_parameters()) == []


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


def test_rounds_stopped_and_opened(picture_folder: Callable[..., Path], tmp_path: Path) -> None:
    folders = [picture_folder(names, 8, name=names[0]) for names in (["ant", "bee"], ["cat", "dog"], ["eel", "fox"])]

    def create(name: str) -> Learner:
        settings = {"adapter": {"rank": 3, "l2": 0.01}}
        return Learner.create(
            tmp_path / name, backbone=TINY, method="orthogonal+finetune", image_size=SIZE, settings=settings
        )

    whole = create("whole").learn(folders[0], training=FAST).learn(folders[1]).learn(folders[2])
    broken = create("broken").learn(folders[0], training=FAST).learn(folders[1])
    with pytest.raises(Interrupted):
        broken.learn(folders[2], progress=StopAt(2))
    broken = Learner.open(tmp_path / "broken").learn(folders[2])
    one, two = (
        each.state.tensors(f"{each.record['tasks'][2]['folder']}/adapter.safetensors") for each in (whole, broken)
    )
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert one["up.block_0_q"].any()
    images = torch.randint(0, 256, (5, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = whole.network.predict(images)
        alone = torch.cat([whole.network.predict(image[None]) for image in images])
        torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)
        opened = Learner.open(tmp_path / "whole")
        assert torch.equal(opened.network.predict(images), together)
        torch.testing.assert_close(opened.merge().network.predict(images), together, atol=1e-5, rtol=0)


def test_adapting_in_the_first_round_only(picture_folder: Callable[..., Path], tmp_path: Path) -> None:
    first, second = (picture_folder(names, 4, name=names[0]) for names in (["ant", "bee"], ["cat", "dog"]))
    learner = Learner.create(tmp_path / "state", backbone=TINY, method="orthogonal+finetune", image_size=SIZE)
    learner.learn(first, training={**FAST, "epochs": 1, "adapt": "first"}).learn(second)
    images = torch.randint(0, 256, (2, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = learner.network.predict(images)
        assert torch.equal(Learner.open(tmp_path / "state").network.predict(images), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, r"adapter\.rank must be >= 1, got 0"),
        ({"alpha": 0.0}, r"adapter\.alpha must be > 0, got 0.0"),
        ({"l1": -1.0}, r"adapter\.l1 must be >= 0 and finite, got -1.0"),
        ({"l2": float("inf")}, r"adapter\.l2 must be >= 0 and finite, got inf"),
        ({"blocks": "7"}, r"adapter\.blocks: '7' is not a block"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        adapter_of(**settings)
