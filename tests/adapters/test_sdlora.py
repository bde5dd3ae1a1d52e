"""SD-LoRA: the composed weight by hand, boundaries, the past in the weights, and both variants."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sapwood.adapters.base import Context
from sapwood.adapters.sdlora import SDLora, SDLoraConfig
from sapwood.backbones import create_backbone
from sapwood.errors import ConfigError
from sapwood.heads import HEADS
from sapwood.network import Network
from sapwood.task import Task

from .toys import fill

TINY, SIZE = "random:dinov2-tiny", 28
TASKS = [Task(index, str(index), (index,), (index,), index + 1, seed=5) for index in range(12)]
Dense = dict[str, np.ndarray]


def adapter_of(**settings: Any) -> SDLora:
    backbone = create_backbone(TINY, SIZE)
    return SDLora(SDLoraConfig(**{"rank": 3, **settings}), backbone.sites, backbone.info)


def key(name: str) -> str:
    return name.replace(".", "_")


def live(adapter: SDLora) -> Dense:
    """B A of the live pair at every site."""
    pairs = {site.name: (adapter.up[key(site.name)], adapter.down[key(site.name)]) for site in adapter.sites}
    return {name: up.detach().double().numpy() @ down.detach().double().numpy() for name, (up, down) in pairs.items()}


def close(adapter: SDLora, expected: Dense, atol: float = 1e-5) -> None:
    x = torch.eye(adapter.sites[0].inputs)
    for site in adapter.sites:
        dense = adapter.dense(site)
        np.testing.assert_allclose(dense.double().numpy(), expected[site.name], atol=atol)
        whole, folded = adapter(site, x, Context()).detach().T, adapter.folded(site)
        whole = whole if folded is None else whole + folded
        np.testing.assert_allclose(whole.double().numpy(), expected[site.name], atol=atol)


def norm_of(adapter: SDLora, name: str, pair: Dense, norm: str) -> float:
    if norm == "product":
        return float(np.linalg.norm(pair[name]))
    return adapter.down[key(name)].norm().item() * adapter.up[key(name)].norm().item()


@pytest.mark.parametrize("norm", ["factors", "product"])
@pytest.mark.parametrize("carry", [True, False])
def test_composed_weight_by_hand(norm: Any, carry: bool) -> None:
    """Four rounds. Carried: a round's change goes on as it was, times the ratio of its magnitude to that at its end."""
    adapter = adapter_of(norm=norm, carry_magnitudes=carry)
    ends: list[tuple[Dense, float]] = []
    for task in TASKS[:4]:
        adapter.before_task(task, None)
        assert adapter.magnitude.item() == pytest.approx(0.8)
        if not carry:
            assert torch.equal(adapter.magnitudes.detach(), torch.full((task.index,), 0.8))
        fill(adapter, task.index)
        pair, a = live(adapter), adapter.magnitude.item()
        expected = {name: a * change for name, change in pair.items()}
        for number, (unit, end) in enumerate(ends):
            factor = adapter.magnitudes[number].item() / (end if carry else 1)
            expected = {name: change + factor * unit[name] for name, change in expected.items()}
        close(adapter, expected)
        sizes = {name: norm_of(adapter, name, pair, norm) for name in pair}
        adapter.after_task(task, None)
        close(adapter, expected)  # nothing of the function is lost when the round ends
        rms = a * np.sqrt(np.mean(np.square(list(sizes.values()))))
        assert adapter.magnitudes[-1].item() == pytest.approx(rms, rel=1e-4)
        kept = {name: a * change if carry else change / sizes[name] for name, change in pair.items()}
        ends.append((kept, rms))


def test_gradients_by_hand() -> None:
    adapter = adapter_of()
    for task in TASKS[:3]:
        adapter.before_task(task, None)
        fill(adapter, task.index)
        if task.index < 2:
            adapter.after_task(task, None)
    generator = torch.Generator().manual_seed(3)
    site = adapter.sites[1]
    x = torch.randn(2, 4, site.inputs, generator=generator, requires_grad=True)
    weights = torch.randn(2, 4, site.outputs, generator=generator)
    (adapter(site, x, Context()) * weights).sum().backward()
    G = (weights.flatten(0, 1).T @ x.detach().flatten(0, 1)).double().numpy()
    a, A, B = (
        each.detach().double().numpy()
        for each in (adapter.magnitude, adapter.down["block_0_v"], adapter.up["block_0_v"])
    )
    np.testing.assert_allclose(adapter.magnitude.grad.item(), np.sum(G * (B @ A)), rtol=1e-4)
    np.testing.assert_allclose(adapter.down["block_0_v"].grad.numpy(), a * B.T @ G, atol=1e-3)
    np.testing.assert_allclose(adapter.up["block_0_v"].grad.numpy(), a * G @ A.T, atol=1e-3)
    down, up = adapter.past["block_0_v"]
    for number in range(2):
        direction = (up[:, 3 * number : 3 * number + 3] @ down[3 * number : 3 * number + 3]).double().numpy()
        by_hand = adapter.weights[number, 1].item() * np.sum(G * direction)
        np.testing.assert_allclose(adapter.magnitudes.grad[number].item(), by_hand, rtol=1e-3, atol=1e-3)
    change = (adapter.dense(site) - adapter.folded(site)).double()
    torch.testing.assert_close(x.grad.double(), weights.double() @ change, atol=1e-4, rtol=0)
    assert not any(factor.requires_grad for pair in adapter.past.values() for factor in pair)


@pytest.mark.parametrize("carry", [True, False])
@torch.no_grad()
def test_boundaries_and_folding(carry: bool) -> None:
    backbone = create_backbone(TINY, SIZE)
    pixels = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    adapter = SDLora(SDLoraConfig(rank=3, carry_magnitudes=carry), backbone.sites, backbone.info)
    network = Network(backbone, adapter, HEADS["linear"](HEADS["linear"].Config(), backbone.info.dim))
    now = network.backbone(pixels).pooled
    for task in TASKS[:3]:
        folded = {site: adapter.folded(site) for site in adapter.sites}
        pasts = {name: (down.clone(), up.clone()) for name, (down, up) in adapter.past.items()}
        adapter.before_task(task, None)
        network.refold()
        if carry or task.index == 0:
            assert torch.equal(network.backbone(pixels).pooled, now)
        else:
            assert (network.backbone(pixels).pooled - now).abs().max() > 1e-3  # magnitudes begin anew
        fill(adapter, task.index)
        for site, before in folded.items():  # what the teacher shares has not moved
            after = adapter.folded(site)
            assert (after is None and before is None) or torch.equal(after, before)
        for name, (down, up) in pasts.items():
            assert torch.equal(adapter.past[name][0], down)
            assert torch.equal(adapter.past[name][1], up)
        now = network.backbone(pixels).pooled
        adapter.after_task(task, None)
        network.refold()
        torch.testing.assert_close(network.backbone(pixels).pooled, now, atol=1e-4, rtol=0)
        now = network.backbone(pixels).pooled
        assert adapter(adapter.sites[0], torch.ones(2, adapter.sites[0].inputs), Context()) is None  # costs nothing
    network.merge()
    torch.testing.assert_close(network.backbone(pixels).pooled, now, atol=1e-5, rtol=0)
    network.unmerge()
    assert torch.equal(network.backbone(pixels).pooled, now)


@pytest.mark.parametrize(
    ("settings", "ranks"),
    [
        ({}, [3] * 12),
        ({"rank": 5, "later_ranks": (4, 2)}, [5] * 4 + [4] * 4 + [2] * 4),
        ({"rank": 5, "later_ranks": (1,), "rank_every": 3}, [5] * 3 + [1] * 9),
    ],
)
def test_ranks_of_later_rounds(settings: dict[str, Any], ranks: list[int]) -> None:
    adapter = adapter_of(**settings)
    history = []
    for task in TASKS:
        adapter.before_task(task, None)
        fill(adapter, task.index)
        adapter.after_task(task, None)
        history.append(adapter.state())
    assert [len(tensors["down.block_0_q"]) for tensors, _ in history] == ranks
    opened = adapter_of(**settings)
    opened.load(history)
    assert all(torch.equal(opened.folded(site), adapter.folded(site)) for site in adapter.sites)


@torch.no_grad()
def test_a_round_that_old_directions_can_do_is_merged() -> None:
    adapter = adapter_of(merge_threshold=0.01)
    history = []
    for task in TASKS[:2]:
        adapter.before_task(task, None)
        fill(adapter, task.index)
        adapter.after_task(task, None)
        history.append(adapter.state())
    first = {name: adapter.past[name] for name in adapter.past}
    # The last has the first one's shape, but not its ratios between sites, which one magnitude cannot mend.
    for noise, even, merged in ((1e-4, False, True), (0.3, False, False), (0.0, True, False)):
        task = TASKS[len(history)]
        adapter.before_task(task, None)
        generator = torch.Generator().manual_seed(7)
        for number, (name, (down, up)) in enumerate(first.items()):
            # 0.5 of the first direction at every site, in other factors
            turn = torch.linalg.qr(torch.randn(3, 3, generator=generator))[0]
            factor = 0.5 * (1 if even else adapter.weights[0, number]) / adapter.magnitude
            adapter.down[name].copy_(turn @ down[:3])
            adapter.up[name].copy_(factor * up[:, :3] @ turn.T)
            adapter.up[name].mul_(1 + noise * torch.randn(adapter.up[name].shape, generator=generator))
        before = {site.name: adapter.dense(site) for site in adapter.sites}
        magnitudes = adapter.magnitudes.clone()
        adapter.after_task(task, None)
        tensors, _ = adapter.state()
        assert set(tensors) == {"magnitudes"} if merged else "down.block_0_q" in tensors
        assert len(adapter.magnitudes) == len(magnitudes) + (not merged)
        if merged:
            expected = magnitudes + torch.tensor([0.5, 0.0])
            torch.testing.assert_close(adapter.magnitudes.detach(), expected, atol=1e-3, rtol=0)
        history.append(adapter.state())
        for site in adapter.sites:
            torch.testing.assert_close(adapter.dense(site), before[site.name], atol=1e-3 if merged else 1e-5, rtol=0)
    opened = adapter_of(merge_threshold=0.01)
    opened.load(history)
    assert all(torch.equal(opened.folded(site), adapter.folded(site)) for site in adapter.sites)
    assert torch.equal(opened.magnitudes, adapter.magnitudes)
    assert list(adapter.persistent_parameters()) == []


def test_a_round_without_any_gradient_is_kept_harmless() -> None:
    for settings in ({}, {"norm": "product"}, {"carry_magnitudes": False}, {"merge_threshold": 0.01}):
        adapter = adapter_of(**settings)
        for task in TASKS[:3]:
            adapter.before_task(task, None)
            if task.index != 1:
                fill(adapter, task.index)
            adapter.after_task(task, None)
        adapter.before_task(TASKS[3], None)
        assert all(adapter.dense(site).isfinite().all() for site in adapter.sites)
        assert len(adapter.magnitudes) == (2 if "merge_threshold" in settings else 3)


@pytest.mark.parametrize("carry", [True, False])
def test_each_round_stores_its_direction_and_all_are_needed(carry: bool) -> None:
    adapter = adapter_of(carry_magnitudes=carry)
    empty = adapter.state()[0]
    history = []
    for task in TASKS[:3]:
        adapter.before_task(task, None)
        fill(adapter, task.index)
        adapter.after_task(task, None)
        tensors, meta = adapter.state()
        history.append(({name: tensor.clone() for name, tensor in tensors.items()}, meta))
    sizes = [sum(tensor.numel() for tensor in tensors.values()) for tensors, _ in history]
    pair = len(adapter.sites) * 2 * 3 * adapter.sites[0].inputs
    assert sizes == [pair + len(adapter.sites) + rounds for rounds in (1, 2, 3)]
    assert sum(tensor.numel() for tensor in empty.values()) == sizes[0]
    opened = adapter_of(carry_magnitudes=carry)
    assert all(opened.folded(site) is None for site in opened.sites)
    opened.load(history)
    assert all(torch.equal(tensor, history[-1][0][name]) for name, tensor in opened.state()[0].items())
    for each in (adapter, opened):
        each.before_task(TASKS[3], None)
        fill(each, 3)
    for site in adapter.sites:
        assert torch.equal(adapter.folded(site), opened.folded(site))
        assert torch.equal(adapter.dense(site), opened.dense(site))
    assert [name for name, _ in adapter.persistent_parameters()] == (["magnitudes"] if carry else [])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, r"adapter\.rank must be >= 1, got 0"),
        ({"magnitude": 0.0}, r"adapter\.magnitude must be > 0 and finite, got 0.0"),
        ({"later_ranks": (8, 0)}, r"adapter\.later_ranks must be >= 1, got \(8, 0\)"),
        ({"rank_every": 0}, r"adapter\.rank_every must be >= 1, got 0"),
        ({"merge_threshold": 1.0}, r"adapter\.merge_threshold must be in \(0, 1\), got 1.0"),
        ({"merge_threshold": 0.1, "carry_magnitudes": False}, r"merge_threshold needs adapter\.carry_magnitudes"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        adapter_of(**settings)
