"""C-LoRA: penalties derived by hand, the fold, what a resumed round knows, and two real rounds."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sapwood.adapters.base import Context
from sapwood.adapters.routed import Routed, RoutedConfig
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


def adapter_of(**settings: Any) -> Routed:
    backbone = create_backbone(TINY, SIZE)
    return Routed(RoutedConfig(**{"rank": 4, "alpha": 6.0, **settings}), backbone.sites, backbone.info)


def fill(adapter: Routed, seed: int) -> Routed:
    """Stand in for training: every live tensor becomes something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return adapter


def learn(adapter: Routed, rounds: int) -> Routed:
    for task in TASKS[:rounds]:
        adapter.before_task(task, None)
        fill(adapter, task.index)
        adapter.after_task(task, None)
    return adapter


@pytest.mark.parametrize("form", ["directions", "routes", "weights"])
@pytest.mark.parametrize("protected", ["half", "energy"])
def test_penalty_by_hand(form: Any, protected: Any) -> None:
    adapter = learn(adapter_of(penalty=0.3, penalty_form=form, protected=protected), 1)
    olds = adapter.old.clone()
    adapter.before_task(TASKS[1], None)
    penalty = adapter.penalty()
    assert penalty is not None
    assert penalty.item() == 0  # the new routes start at zero
    fill(adapter, 7)
    expected = 0.0
    for old, (key, delta) in zip(olds.double().numpy(), adapter.delta.items(), strict=True):
        new, up = delta.detach().double().numpy(), adapter.up[key].detach().double().numpy()
        left, values, _ = np.linalg.svd(old)
        share = np.cumsum(values**2) / np.sum(values**2)
        k = 2 if protected == "half" else min(3, 1 + int((share < 0.9).sum()))
        by = {"directions": left[:, :k].T, "routes": old.T, "weights": old.T @ up.T @ up}[form]
        expected += 0.3 * np.sum((by @ new) ** 2)
    penalty = adapter.penalty()
    penalty.backward()
    assert penalty.item() == pytest.approx(expected, rel=1e-5)
    assert all(delta.grad.any() for delta in adapter.delta.values())
    assert all((up.grad is not None) == (form == "weights") for up in adapter.up.values())
    assert all(down.grad is None for down in adapter.down.values())


def test_no_penalty_where_there_is_no_past() -> None:
    adapter = adapter_of()
    assert adapter.penalty() is None
    adapter.before_task(TASKS[0], None)
    assert fill(adapter, 0).penalty() is None
    adapter.after_task(TASKS[0], None)
    assert adapter.penalty() is None
    adapter.before_task(TASKS[1], None)
    assert adapter.penalty() is not None
    adapter.after_task(TASKS[1], None)
    assert adapter.penalty() is None
    free = learn(adapter_of(penalty=0.0), 1)
    free.before_task(TASKS[1], None)
    assert free.penalty() is None


def test_rank_one_still_learns() -> None:
    adapter = learn(adapter_of(rank=1), 2)
    adapter.before_task(TASKS[2], None)
    fill(adapter, 3)
    penalty = adapter.penalty()
    expected = 0.01 * sum(delta.detach().square().sum().item() for delta in adapter.delta.values())
    assert penalty.item() == pytest.approx(expected, rel=1e-5)  # one direction is all there is


def test_starts_as_the_backbone_and_goes_on_where_it_was() -> None:
    backbone = create_backbone(TINY, SIZE)
    pixels = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        plain = backbone(pixels).pooled
        adapter = Routed(RoutedConfig(rank=4), backbone.sites, backbone.info)
        network = Network(backbone, adapter, HEADS["linear"](HEADS["linear"].Config(), backbone.info.dim))
        adapter.before_task(TASKS[0], None)
        assert torch.equal(network.backbone(pixels).pooled, plain)
        assert all(torch.equal(delta, torch.eye(4)) for delta in adapter.delta.values())
        assert all(0.4 < up.abs().max() <= 0.5 for up in adapter.up.values())  # 1 / sqrt(4)
        for task in TASKS[:3]:
            adapter.before_task(task, None)
            fill(adapter, task.index)
            learned = network.backbone(pixels).pooled
            assert (learned - plain).abs().max() > 1e-3
            adapter.after_task(task, None)
            network.refold()
            assert torch.equal(network.backbone(pixels).pooled, learned)  # the fold
            adapter.before_task(TASKS[task.index + 1], None)
            assert torch.equal(network.backbone(pixels).pooled, learned)  # the boundary
        network.merge()
        torch.testing.assert_close(network.backbone(pixels).pooled, learned, atol=1e-5, rtol=0)
        network.unmerge()
        assert torch.equal(network.backbone(pixels).pooled, learned)


def test_factors_may_learn_through_the_new_route_alone() -> None:
    gradients = []
    for detach in (False, True):
        adapter = learn(adapter_of(detach_old_route=detach), 1)
        adapter.before_task(TASKS[1], None)
        adapter(adapter.sites[0], torch.ones(2, 3, adapter.sites[0].inputs), Context()).sum().backward()
        gradients.append([factor["block_0_q"].grad.abs().max() for factor in (adapter.down, adapter.up, adapter.delta)])
    (down, up, delta), (down_alone, up_alone, delta_alone) = gradients
    assert min(down, up, delta) > 1e-3
    assert down_alone == up_alone == 0  # the new route is still zero
    assert delta_alone == delta


def test_dense_is_the_composed_weight() -> None:
    adapter = learn(adapter_of(), 2)
    adapter.before_task(TASKS[2], None)
    fill(adapter, 9)
    site, key = adapter.sites[1], "block_0_v"
    route = adapter.old[1] + adapter.delta[key]
    expected = 1.5 * adapter.up[key].double() @ route.double() @ adapter.down[key].double()
    torch.testing.assert_close(adapter.dense(site).double(), expected, atol=1e-6, rtol=0)
    x = torch.randn(2, 3, site.inputs, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(adapter(site, x, Context()).double(), x.double() @ expected.T, atol=1e-5, rtol=0)
    assert adapter.folded(site) is None


def test_the_old_routes_are_frozen_and_nothing_grows() -> None:
    adapter = adapter_of(rank=3)
    sizes = set()
    for rounds in range(1, 4):
        learn(adapter, rounds)
        old = adapter.old.clone()
        adapter.before_task(TASKS[rounds], None)
        optimiser = torch.optim.AdamW(adapter.parameters(), lr=0.1)
        sum(parameter.sum() for parameter in adapter.parameters()).backward()
        optimiser.step()
        assert torch.equal(adapter.old, old)
        tensors, meta = adapter.state()
        sizes.add(sum(tensor.numel() for tensor in tensors.values()))
        assert meta == {"sites": [site.name for site in adapter.sites]}
    width = adapter.sites[0].inputs
    assert sizes == {len(adapter.sites) * (2 * 3 * width + 2 * 9)}
    fresh = adapter_of(rank=3).state()[0]
    assert {sum(tensor.numel() for tensor in fresh.values())} == sizes
    # An anchor holds the shared factors alone.
    assert {name.split(".")[0] for name, _ in adapter.persistent_parameters()} == {"down", "up"}
    assert {name.split(".")[0] for name, _ in adapter.named_parameters()} == {"down", "up", "delta"}


@pytest.mark.parametrize("protected", ["half", "energy"])
def test_a_round_taken_up_again_protects_the_same(protected: Any) -> None:
    adapter = learn(adapter_of(protected=protected), 2)
    opened = adapter_of(protected=protected)
    opened.load([({}, {}), adapter.state()])  # the last round's file holds everything
    assert not any(delta.any() for delta in opened.delta.values())
    for each in (adapter, opened, opened):  # before_task may run twice
        each.before_task(TASKS[2], None)
    assert torch.equal(adapter.guard, opened.guard)
    assert torch.equal(fill(adapter, 4).penalty(), fill(opened, 4).penalty())
    one, two = adapter.routes(), opened.routes()
    assert all(torch.equal(one[name].delta, two[name].delta) for name in one)


def test_routes_can_be_looked_at() -> None:
    adapter = adapter_of()
    befores = []
    for task in TASKS[:2]:
        adapter.before_task(task, None)
        fill(adapter, task.index)
        befores.append((adapter.old.clone(), {key: delta.detach().clone() for key, delta in adapter.delta.items()}))
        adapter.after_task(task, None)
        routes = adapter.routes()
        assert list(routes) == [site.name for site in adapter.sites]
        for number, (name, route) in enumerate(routes.items()):
            old, delta = befores[-1][0][number], befores[-1][1][name.replace(".", "_")]
            assert torch.equal(route.delta, delta)
            assert torch.equal(route.old, old + delta)
            if task.index == 0:
                assert route.overlap is None
                continue
            left = np.linalg.svd(old.numpy())[0][:, :2]
            assert route.overlap == pytest.approx(
                np.linalg.norm(left.T @ delta.numpy()) / delta.norm().item(), rel=1e-4
            )


def test_the_penalty_turns_the_new_route_away_from_the_old() -> None:
    """Gradient steps towards the old route's leading direction: with a strong penalty the overlap stays small."""
    overlaps = []
    for strength in (0.0, 10.0):
        adapter = learn(adapter_of(penalty=strength), 1)
        adapter.before_task(TASKS[1], None)
        wanted = {key: old.clone() for key, old in zip(adapter.delta, adapter.old, strict=True)}
        optimiser = torch.optim.SGD(adapter.delta.values(), lr=0.02)
        for _ in range(100):
            loss = sum((delta - wanted[key]).square().sum() for key, delta in adapter.delta.items())
            loss = loss + (adapter.penalty() if strength else 0.0)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        adapter.after_task(TASKS[1], None)
        overlaps.append(max(route.overlap for route in adapter.routes().values()))
    assert overlaps[0] > 0.7
    assert overlaps[1] < 0.3


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


@pytest.mark.parametrize("detach", [False, True])
def test_two_rounds_stopped_and_opened(detach: bool, picture_folder: Callable[..., Path], tmp_path: Path) -> None:
    first, second = (picture_folder(names, 8, name=names[0]) for names in (["ant", "bee"], ["cat", "dog"]))

    def create(name: str) -> Learner:
        settings = {"adapter": {"rank": 4, "penalty": 1.0, "detach_old_route": detach}}
        return Learner.create(
            tmp_path / name, backbone=TINY, method="routed+finetune", image_size=SIZE, settings=settings
        )

    whole = create("whole").learn(first, training=FAST).learn(second)
    broken = create("broken").learn(first, training=FAST)
    with pytest.raises(Interrupted):
        broken.learn(second, progress=StopAt(3))
    broken = Learner.open(tmp_path / "broken").learn(second)
    one, two = (
        each.state.tensors(f"{each.record['tasks'][1]['folder']}/adapter.safetensors") for each in (whole, broken)
    )
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert one["last"].any()
    images = torch.randint(0, 256, (5, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = whole.network.predict(images)
        alone = torch.cat([whole.network.predict(image[None]) for image in images])
        torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)
        opened = Learner.open(tmp_path / "whole")
        assert torch.equal(opened.network.predict(images), together)
        torch.testing.assert_close(opened.merge().network.predict(images), together, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, r"adapter\.rank must be >= 1, got 0"),
        ({"alpha": 0.0}, r"adapter\.alpha must be > 0, got 0.0"),
        ({"penalty": -1.0}, r"adapter\.penalty must be >= 0 and finite, got -1.0"),
        ({"targets": ("gate",)}, r"adapter\.targets: no projection gate"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        adapter_of(**settings)
