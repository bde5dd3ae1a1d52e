"""DualLoRA: each piece against the formula written out with dense matrices, on layers of a real tiny network."""

from __future__ import annotations

import copy
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sapwood.adapted import AdaptedLinear
from sapwood.adapters.base import Context
from sapwood.adapters.dual import Dual
from sapwood.adapters.dual_config import DualConfig
from sapwood.backbones import create_backbone
from sapwood.backbones.base import Site
from sapwood.collector import Collector
from sapwood.errors import ConfigError, NotMergeable
from sapwood.heads import HEADS
from sapwood.network import Network
from sapwood.task import Task

TINY, SIZE = "random:dinov2-tiny", 28
ALMOST_ALL = 0.9995  # class tokens of random weights differ by little: less is held by one direction
BASES = pytest.mark.parametrize("basis", ["previous", "current"])


def network_of(backbone: str = TINY, size: int = SIZE, **settings: Any) -> Network:
    made = create_backbone(backbone, size)
    adapter = Dual(DualConfig(**{"rank": 3, **settings}), made.sites, made.info)
    return Network(made, adapter, HEADS["linear"](HEADS["linear"].Config(), made.info.dim))


def images(seed: int, count: int = 10, size: int = SIZE) -> Tensor:
    """Noise around a colour of the seed's own."""
    rng = torch.Generator().manual_seed(seed)
    colour = torch.randint(40, 216, (1, 1, 1, 3), generator=rng)
    return (colour + torch.randint(-40, 40, (count, size, size, 3), generator=rng)).to(torch.uint8)


def statistics(network: Network, batch: Tensor) -> Collector:
    batches = [SimpleNamespace(images=part) for part in batch.split(4)]
    return Collector(network, SimpleNamespace(batches=lambda epoch, start: batches), len(batch))


def task(index: int) -> Task:
    return Task(index, f"round {index}", (index,), (index,), index + 1, seed=3)


def disturb(adapter: Dual, seed: int) -> dict[str, Tensor]:
    """What an optimiser might do: every trainable factor moves anywhere; then the step is over."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for factor in adapter.parameters():
            if factor.requires_grad:
                factor += 0.2 * torch.randn(factor.shape, generator=rng)
    adapter.after_step()
    return {name: factor.detach().clone() for name, factor in adapter.named_parameters()}


def learn(network: Network, index: int, batch: Tensor | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One round without an optimiser: the factors it ended with, and its class tokens at every layer, float64."""
    adapter = network.adapter
    seen = statistics(network, images(index) if batch is None else batch)
    adapter.before_task(task(index), seen)
    factors = disturb(adapter, seed=100 + index)
    z = class_tokens(seen)
    adapter.after_task(task(index), seen)
    network.refold()
    return factors, z


def class_tokens(seen: Collector) -> dict[str, Tensor]:
    rows: dict[str, list[Tensor]] = {}
    seen.visit(lambda key, x: rows.setdefault(key, []).append(x[:, 0].double()))
    return {key: torch.cat(parts) for key, parts in rows.items()}


def layer_at(network: Network, name: str) -> tuple[AdaptedLinear, Site]:
    (layer,) = (layer for layer in network.adapted if layer.sites[0].name == name)
    return layer, layer.sites[0]


def key_of(site: Site) -> str:
    return "layer_" + site.input_key.replace(".", "_")


def outside(z: Tensor, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Singular values and right vectors of rows without what is held."""
    _, sizes, right = np.linalg.svd(z.numpy() - z.numpy() @ held @ held.T)
    return sizes, right


def test_directions_and_mean_shares_are_those_of_the_class_tokens() -> None:
    network = network_of(energy=ALMOST_ALL)
    held: dict[str, np.ndarray] = {}
    for index in range(3):
        _, tokens = learn(network, index)
        for layer, memory in network.adapter.layers.items():
            z, old = tokens[memory.input_key], held.get(layer, np.zeros((memory.basis.shape[0], 0)))
            sizes, right = outside(z, old)
            total = float(z.square().sum())
            kept, count = 1 - (sizes**2).sum() / total, 0
            # At least one, if there is any: at the first block the class token is the same for all pictures.
            while kept < ALMOST_ALL or (count == 0 and sizes[0] ** 2 > 1e-10 * total):
                kept += sizes[count] ** 2 / total
                count += 1
            found = memory.directions(index).double().numpy()
            assert found.shape[1] == count
            assert np.allclose(found @ found.T, right[:count].T @ right[:count], atol=1e-4)
            share = ((z.numpy() @ found) ** 2).sum(1) / (z.numpy() ** 2).sum(1)
            if count:
                assert memory.weights[-1, index].item() == pytest.approx(1 / share.mean(), rel=1e-5)
            assert memory.tells.tolist()[index] == (count > 0)
            held[layer] = memory.basis.double().numpy()
            assert np.allclose(held[layer].T @ held[layer], np.eye(held[layer].shape[1]), atol=1e-5)
    assert max(columns.shape[1] for columns in held.values()) > 6


def test_energy_rises_only_where_the_number_of_rounds_is_known() -> None:
    def energies(**settings: Any) -> list[float]:
        adapter = network_of(energy=0.8, **settings).adapter
        return [adapter._energy(task(index)) for index in range(6)]

    assert energies() == [0.8] * 6
    assert energies(expected_tasks=4) == pytest.approx([0.8, 0.85, 0.9, 0.95, 0.95, 0.95])


def test_the_orthogonal_pair_begins_with_inflora_s_design_and_stays_orthogonal() -> None:
    network = network_of(energy=ALMOST_ALL)
    adapter = network.adapter
    learn(network, 0)
    seen = statistics(network, images(1))
    _, site = layer_at(network, "block.1.v")
    memory = adapter.layers[key_of(site)]
    held = memory.basis.double()
    z = class_tokens(seen)[site.input_key]
    moment = z.T @ z / len(z)
    left = np.linalg.svd((moment - held @ held.T @ moment).numpy())[0][:, :3].T
    adapter.before_task(task(1), seen)
    rows = adapter.down["block_1_v"].detach().double().numpy()
    assert np.allclose(rows @ rows.T, np.eye(3) / 3, atol=1e-5)
    assert np.allclose(rows.T @ rows, left.T @ left / 3, atol=1e-4)
    assert torch.equal(adapter.down["block_1_k"], adapter.down["block_1_v"])
    disturb(adapter, 5)
    assert (adapter.down["block_1_v"] - torch.from_numpy(rows)).abs().max() > 0.1  # both factors train
    assert (adapter.down["block_1_v"].double() @ held).norm() < 1e-5


def test_folded_rounds_leave_the_directions_of_earlier_ones_alone() -> None:
    network = network_of(energy=ALMOST_ALL)
    adapter = network.adapter
    bases: list[dict[str, Tensor]] = []
    folds: list[dict[str, Tensor]] = []
    for index in range(3):
        factors, _ = learn(network, index)
        bases.append({layer: memory.basis.double() for layer, memory in adapter.layers.items()})
        folds.append({site.name: adapter.folded(site).double() for site in adapter.sites})
        for site in adapter.sites:
            key = site.name.replace(".", "_")
            pair = factors[f"up.{key}"].double() @ factors[f"down.{key}"].double()
            old = folds[-2][site.name] if index else torch.zeros_like(pair)
            torch.testing.assert_close(folds[-1][site.name] - old, pair, atol=2e-6, rtol=0)
    for earlier, (before, after) in enumerate(pairwise(folds)):
        for site in adapter.sites:
            change = after[site.name] - before[site.name]
            assert change.norm() > 0.1
            assert (change @ bases[earlier][key_of(site)]).norm() <= 1e-6


@BASES
def test_the_forward_is_the_formula(basis: str) -> None:
    """Three finished rounds and one being learned: gates, projectors and dense memories, summed in float64."""
    network = network_of(residual_basis=basis, energy=ALMOST_ALL)
    adapter = network.adapter
    factors = [learn(network, index)[0] for index in range(3)]
    layer, site = layer_at(network, "block.1.k")
    memory, key = adapter.layers[key_of(site)], "block_1_k"
    psi = [memory.directions(index).double() for index in range(3)]
    rng = torch.Generator().manual_seed(8)
    x = torch.randn(5, 4, site.inputs, generator=rng) @ (memory.basis @ memory.basis.T + 0.3 * torch.eye(site.inputs))
    z = x[:, 0].double()
    means = [1 / memory.weights[:, index].max().double() for index in range(3)]
    shares = [(z @ part).square().sum(1) / z.square().sum(1) / mean for part, mean in zip(psi, means, strict=True)]
    assert any((share < 1).any() and (share > 1).any() for share in shares)  # some gates are open, some are not
    expected = F.linear(x, layer.base.weight, layer.base.bias).double() + x.double() @ adapter.folded(site).double().T
    for index in (1, 2):
        mine = psi[index if basis == "current" else index - 1]
        dense = factors[index][f"residual_up.{key}"].double() @ factors[index][f"residual_down.{key}"].double()
        torch.testing.assert_close(dense @ mine @ mine.T, dense, atol=1e-5, rtol=0)  # nothing outside its directions
        assert dense.norm() > 0.1
        expected += shares[index].clamp(max=1)[:, None, None] * (x.double() @ dense.T)
    with torch.no_grad():
        torch.testing.assert_close(layer(x).double(), expected, atol=1e-5, rtol=0)
        seen = statistics(network, images(3))
        adapter.before_task(task(3), seen)
        torch.testing.assert_close(layer(x).double(), expected, atol=1e-5, rtol=0)  # it begins as it was
        live = disturb(adapter, 9)
        for part in ("", "residual_"):
            expected += x.double() @ (live[f"{part}up.{key}"].double() @ live[f"{part}down.{key}"].double()).T
        torch.testing.assert_close(layer(x).double(), expected, atol=1e-5, rtol=0)
        along = live[f"residual_down.{key}"] @ memory.live @ memory.live.T
        torch.testing.assert_close(along, live[f"residual_down.{key}"], atol=1e-6, rtol=0)
    assert torch.equal(memory.live, memory.directions(2)) == (basis == "previous")


@BASES
def test_where_a_round_has_no_direction_there_is_no_residual_pair(basis: str) -> None:
    """At the first block all pictures have one class token: no gate of a later round could ever open there."""
    network = network_of(residual_basis=basis)
    adapter = network.adapter
    learn(network, 0)
    adapter.before_task(task(1), statistics(network, images(1)))
    disturb(adapter, 1)
    memories = {memory.input_key.split(".")[1]: memory for memory in adapter.layers.values()}
    assert [memories[block].directions(0).shape[1] for block in "01"] == [1, 1]
    assert [memories[block].live.shape[1] for block in "01"] == [0, 1]
    assert not adapter.residual_down["block_0_k"].any()
    assert adapter.residual_down["block_1_k"].any()


def test_directions_found_before_training_need_no_others_if_they_hold_the_energy() -> None:
    network = network_of(residual_basis="current")
    learn(network, 0)
    seen = statistics(network, images(1))
    network.adapter.before_task(task(1), seen)
    live = {layer: memory.live.clone() for layer, memory in network.adapter.layers.items()}
    network.adapter.after_task(task(1), seen)  # nothing was learned, so the pictures look as before
    for layer, memory in network.adapter.layers.items():
        assert torch.equal(memory.directions(1), live[layer])


def test_no_gradient_runs_through_gates_and_sites_of_a_layer_share_them() -> None:
    network = network_of(energy=ALMOST_ALL)
    adapter = network.adapter
    for index in range(2):
        learn(network, index)
    _, site = layer_at(network, "block.1.k")
    _, other = layer_at(network, "block.1.v")
    x = torch.randn(2, 4, site.inputs, generator=torch.Generator().manual_seed(1), requires_grad=True)
    context = Context()
    out = adapter(site, x, context)
    made = dict(context.values)
    adapter(other, x, context)
    assert all(context.values[name] is value for name, value in made.items())
    assert not context.values[f"dual.{site.input_key}"].requires_grad
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    (got,) = torch.autograd.grad((out * weights).sum(), x)
    gate = context.values[f"dual.{site.input_key}"].clamp(max=1)[:, 1]
    tensors, _ = adapter.state()
    first = adapter.layers[key_of(site)].directions(0)
    dense = tensors["residual_up.block_1_k"] @ tensors["residual_down.block_1_k"] @ first @ first.T
    torch.testing.assert_close(got, gate[:, None, None] * (weights @ dense), atol=1e-5, rtol=0)


def test_first_round_has_no_residual_pair_and_nothing_of_it_trains() -> None:
    network = network_of()
    adapter = network.adapter
    learn(network, 0)
    assert not any("residual" in name for name in adapter.state()[0])
    adapter.before_task(task(1), statistics(network, images(1)))
    trained = {name.partition(".")[0] for name, factor in adapter.named_parameters() if factor.requires_grad}
    assert trained == {"down", "up", "residual_down", "residual_up"}
    fresh = network_of()
    fresh.adapter.before_task(task(0), statistics(fresh, images(0)))
    assert not any("residual" in name for name in fresh.trainable())


@torch.no_grad()
def test_logits_are_calibrated_by_the_mean_ratio_over_layers() -> None:
    network = network_of(sharpness=3.0, calibration=0.7, confidence=0.0)
    adapter = network.adapter
    for index in range(3):
        learn(network, index)
    network.head.grow(4, torch.Generator().manual_seed(0))  # channel 3 is of no round
    tokens, context = network.tokens(images(1, 5))
    plain = network.head(tokens)
    first, second = (context.values[f"dual.{m.input_key}"].double().numpy() for m in adapter.layers.values())
    assert np.allclose(first, [1, 0, 0], atol=1e-6)  # at the first block all pictures have one class token
    scores = np.stack([(1 + second[:, 0]) / 2, second[:, 1], second[:, 2]], 1)
    assert scores.std(0).min() > 0
    log_p = 3 * scores - np.log(np.exp(3 * scores).sum(1, keepdims=True))
    expected = plain.double().numpy() + 0.7 * np.concatenate([log_p, np.zeros((5, 1))], 1)
    assert np.allclose(network.predict(images(1, 5)), expected, atol=1e-5)
    maps = plain[:, :, None, None].repeat(1, 1, 2, 3)
    shifted = adapter.calibrate(maps, context)
    assert np.allclose(shifted, np.broadcast_to(expected[:, :, None, None], shifted.shape), atol=1e-5)
    adapter.before_task(task(3), statistics(network, images(3)))
    assert torch.equal(network.predict(images(1, 5)), plain)  # while a round is learned its pictures are its own


@BASES
def test_each_round_stores_what_it_adds_and_all_restore_the_whole(basis: str) -> None:
    network = network_of(residual_basis=basis, energy=ALMOST_ALL)
    adapter = network.adapter
    stored = []
    for index in range(3):
        learn(network, index)
        stored.append(copy.deepcopy(adapter.state()))
    assert [meta for _, meta in stored] == [{"classes": [index]} for index in range(3)]
    assert all(min(tensor.shape, default=1) <= 3 or "basis" in name for name, tensor in stored[2][0].items())
    again = network_of(residual_basis=basis, energy=ALMOST_ALL)
    again.adapter.load(stored)
    again.refold()
    for name, buffer in adapter.named_buffers():
        if not name.endswith("live"):
            assert torch.equal(again.adapter.get_buffer(name), buffer), name
    with torch.no_grad():
        one, two = (each.tokens(images(7))[0].pooled for each in (network, again))
    assert torch.equal(one, two)
    fresh, _ = network_of().adapter.state()
    assert fresh.keys() == {name for name in stored[0][0] if not name.startswith(("basis", "mean"))}


@torch.no_grad()
@pytest.mark.parametrize(
    ("settings", "merges"),
    [
        ({}, False),
        ({"calibration": 0.0}, False),
        ({"residual": False}, False),
        ({"residual": False, "calibration": 0.0}, True),
        ({"gates": False, "calibration": 0.0}, True),
    ],
)
def test_it_merges_where_no_picture_is_looked_at(settings: dict[str, Any], merges: bool) -> None:
    network = network_of(**settings)
    adapter = network.adapter
    assert (adapter.mergeable, adapter.calibrates) == (merges, settings.get("calibration") != 0)
    for index in range(2):
        learn(network, index)
    network.head.grow(2, torch.Generator().manual_seed(0))
    before = network.predict(images(5))
    if not merges:
        with pytest.raises(NotMergeable, match=r"adapter\.gates=false with adapter\.calibration=0 merges"):
            network.merge()
        return
    for site in adapter.sites:
        assert adapter(site, torch.zeros(1, 2, site.inputs), Context()) is None
        pairs = [tensors for tensors, _ in adapter.past]
        key = site.name.replace(".", "_")
        whole = sum(pair[f"up.{key}"] @ pair[f"down.{key}"] for pair in pairs)
        if not settings.get("gates", True):
            whole = whole + pairs[1][f"residual_up.{key}"] @ pairs[1][f"residual_down.{key}"]
        torch.testing.assert_close(adapter.dense(site), whole, atol=1e-6, rtol=0)
    network.merge()
    torch.testing.assert_close(network.predict(images(5)), before, atol=1e-6, rtol=0)
    network.unmerge()
    seen = statistics(network, images(2))
    adapter.before_task(task(2), seen)
    assert torch.equal(network.predict(images(5)), before)
    disturb(adapter, 1)
    apart = network.predict(images(5))
    network.merge()
    torch.testing.assert_close(network.predict(images(5)), apart, atol=1e-5, rtol=0)


def test_frozen_and_over_all_tokens_the_orthogonal_pair_is_inflora() -> None:
    network = network_of(residual=False, calibration=0.0, freeze_down=True, moments="all", energy=0.8)
    adapter = network.adapter
    learn(network, 0)
    _, site = layer_at(network, "block.1.k")
    held = adapter.layers[key_of(site)].basis.double()
    seen, rows = statistics(network, images(1)), []
    seen.visit(lambda key, x: rows.append(x.flatten(0, 1).double()) if key == site.input_key else None)
    x = torch.cat(rows)
    moment = x.T @ x / len(x)
    left = np.linalg.svd((moment - held @ held.T @ moment).numpy())[0][:, :3].T
    adapter.before_task(task(1), seen)
    designed = adapter.down["block_1_k"].detach().clone()
    assert np.allclose(designed.double().T @ designed.double(), left.T @ left / 3, atol=1e-4)
    assert {name.split(".")[1] for name in network.trainable() if name.startswith("adapter.")} == {"up"}
    disturb(adapter, 2)
    assert torch.equal(adapter.down["block_1_k"], designed)
    adapter.after_task(task(1), seen)
    folded = adapter.state()[0]["down.block_1_k"]
    torch.testing.assert_close(folded, designed, atol=1e-6, rtol=0)


def test_a_round_may_add_no_direction() -> None:
    """One that sees the same as before once everything is held, and one of a single picture, still work."""
    network = network_of(energy=1.0, rank=64, blocks="1")
    adapter = network.adapter
    learn(network, 0, images(0, 60))
    learn(network, 1, images(1, 60))
    memory = next(iter(adapter.layers.values()))
    width = memory.basis.shape[0]
    while memory.basis.shape[1] < width and memory.rounds < 6:
        learn(network, memory.rounds, torch.randint(0, 256, (60, SIZE, SIZE, 3), dtype=torch.uint8))
    last = memory.rounds
    learn(network, last, images(3, 1))
    learn(network, last + 1, images(3, 1))
    assert memory.basis.shape[1] <= width
    assert memory.directions(-1).shape[1] <= 1
    tensors, _ = adapter.state()
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    with torch.no_grad():
        tokens, context = network.tokens(images(4))
    assert tokens.pooled.isfinite().all()
    assert all(value.isfinite().all() for value in context.values.values())


@pytest.mark.parametrize("backbone", ["random:mit-tiny", "random:sam-tiny"])
def test_without_a_class_token_the_mean_must_be_asked_for(backbone: str) -> None:
    size = 64
    with pytest.raises(ConfigError, match=r"has no class token; use the mean .* --set adapter\.token=mean"):
        network_of(backbone, size)
    network = network_of(backbone, size, token="mean")
    for index in range(2):
        learn(network, index, images(index, 6, size))
    network.head.grow(2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = network.predict(images(0, 3, size))
        alone = torch.cat([network.predict(image[None]) for image in images(0, 3, size)])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, r"adapter\.rank must be >= 1, got 0"),
        ({"energy": 95.0}, r"adapter\.energy must be in \(0, 1\], got 95"),
        ({"expected_tasks": 0}, r"adapter\.expected_tasks must be >= 1 or none, got 0"),
        ({"sharpness": -1.0}, r"adapter\.sharpness must be >= 0"),
        ({"calibration": -1.0}, r"adapter\.calibration must be >= 0"),
        ({"confidence": 2.0}, r"adapter\.confidence must be in 0\.\.1, got 2"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DualConfig(**settings)
