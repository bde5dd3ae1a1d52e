"""DualLoRA: each piece against the formula written out with dense matrices, on layers of a real tiny network."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sapwood.adapters.base import Context

from .dual_rounds import (
    ALMOST_ALL,
    BASES,
    class_tokens,
    disturb,
    images,
    key_of,
    layer_at,
    learn,
    network_of,
    outside,
    statistics,
    task,
)


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
