"""LoRA with a pair of its own for every round."""

from __future__ import annotations

import torch
from torch import Tensor

from sapwood.adapters.base import Context
from sapwood.adapters.lora import Lora, LoraConfig
from sapwood.backbones import create_backbone
from sapwood.network import Network
from sapwood.task import Task

from .lora_networks import FIRST, SIZE, TINY, close, network_of, pictures

SECOND = Task(1, "second", (2,), (2,), 3, seed=5)


def filled(adapter: Lora, seed: int) -> dict[str, Tensor]:
    """Let the live factors B be something, and give all live factors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for factor in adapter.up.values():
            factor.normal_(0, 0.3, generator=generator)
    return {name: tensor.clone() for name, tensor in adapter.state_dict().items()}


def two_rounds() -> tuple[Network, Lora, list[dict[str, Tensor]]]:
    backbone = create_backbone(TINY, SIZE)
    adapter = Lora(LoraConfig(rank=2, alpha=6.0, reinit=True), backbone.sites, backbone.info)
    network, learned = network_of(adapter, backbone), []
    for task in (FIRST, SECOND):
        adapter.before_task(task, None)
        network.refold()
        learned.append(filled(adapter, task.index))
        adapter.after_task(task, None)
        network.refold()
    return network, adapter, learned


def test_every_round_draws_a_pair_of_its_own() -> None:
    _, _, (first, second) = two_rounds()
    assert not torch.equal(first["down.block_0_q"], second["down.block_0_q"])
    other = Lora(LoraConfig(rank=2, reinit=True), create_backbone(TINY, SIZE).sites, None)
    other.before_task(SECOND, None)  # from seed and round alone, whatever was learned before
    assert torch.equal(other.down["block_0_q"], second["down.block_0_q"])


@torch.no_grad()
def test_finished_rounds_are_in_the_weights_and_a_new_one_starts_where_they_end() -> None:
    network, adapter, learned = two_rounds()
    (layer,) = (layer for layer in network.adapted if layer.sites[0].name == "block.1.v")
    site, key = layer.sites[0], "block_1_v"
    past = sum(3.0 * pair[f"up.{key}"].double() @ pair[f"down.{key}"].double() for pair in learned)
    torch.testing.assert_close(layer.changed.double(), layer.base.weight.double() + past, atol=1e-6, rtol=0)
    x = torch.randn(2, site.inputs, generator=torch.Generator().manual_seed(4))
    assert not adapter(site, x, Context()).any()  # between rounds nothing is live
    before = network.backbone(pictures()).pooled
    adapter.before_task(Task(2, "third", (3,), (3,), 4, seed=5), None)
    network.refold()
    assert torch.equal(network.backbone(pictures()).pooled, before)
    live = filled(adapter, 9)
    assert (network.backbone(pictures()).pooled - before).abs().max() > 1e-3
    whole = past + 3.0 * live[f"up.{key}"].double() @ live[f"down.{key}"].double()
    torch.testing.assert_close(adapter.dense(site).double(), whole, atol=1e-6, rtol=0)
    apart = network.backbone(pictures()).pooled
    network.merge()
    close(network.backbone(pictures()).pooled, apart)
    network.unmerge()
    assert torch.equal(network.backbone(pictures()).pooled, apart)


def test_each_round_stores_its_own_pair_and_all_are_needed() -> None:
    _, adapter, learned = two_rounds()
    assert adapter.history == "all"
    assert Lora(LoraConfig(), adapter.sites, None).history == "last"
    tensors, meta = adapter.state()
    assert tensors.keys() == learned[1].keys()
    assert all(torch.equal(tensor, learned[1][name]) for name, tensor in tensors.items())  # that of the last round
    opened = Lora(adapter.config, adapter.sites, None)
    opened.load([(pair, meta) for pair in learned])
    for site in adapter.sites:
        one, two = adapter.folded(site), opened.folded(site)
        assert one is not None
        assert two is not None
        assert torch.equal(one, two)
        assert torch.equal(opened.dense(site), one)
    again, _ = opened.state()
    assert all(torch.equal(tensor, again[name]) for name, tensor in tensors.items())


def test_a_round_that_is_over_is_no_parameter() -> None:
    _, adapter, _ = two_rounds()
    assert sum(parameter.numel() for parameter in adapter.parameters()) == sum(
        2 * (site.inputs + site.outputs) for site in adapter.sites
    )
    assert list(adapter.persistent_parameters()) == []  # nothing of it lives on that an anchor could hold
    fresh = Lora(adapter.config, adapter.sites, None)
    assert all(fresh.folded(site) is None for site in fresh.sites)
    fresh.load([])
    assert all(fresh.folded(site) is None for site in fresh.sites)
