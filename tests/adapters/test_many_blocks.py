"""Twelve blocks: dictionaries of parameters sort their keys, block 10 before block 2; no adapter may mix them up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from sapwood.adapters import ADAPTERS, Adapter
from sapwood.adapters.base import Context, site_key
from sapwood.adapters.routed import Routed, RoutedConfig
from sapwood.adapters.sdlora import SDLora, SDLoraConfig
from sapwood.backbones import create_backbone
from sapwood.task import Task

from .toys import fill

BLOCKS = 12
TASKS = [Task(index, str(index), (index,), (index,), index + 1, seed=5) for index in range(3)]
ASKING_FOR_NO_PICTURES = ("lora", "routed", "orthogonal", "sdlora")


def adapter_of(name: str, **settings: Any) -> Adapter:
    """Over blocks that are all shaped like the first of a tiny backbone."""
    backbone = create_backbone("random:dinov2-tiny", 28)
    first = [site for site in backbone.sites if site.block == 0]
    sites = [replace(site, name=f"block.{block}.{site.part}") for block in range(BLOCKS) for site in first]
    adapter: Adapter = ADAPTERS[name](ADAPTERS[name].Config(**settings), sites, backbone.info)
    return adapter


@pytest.mark.parametrize("targets", [("q", "v"), ("q", "k", "v")])
@pytest.mark.parametrize("name", ASKING_FOR_NO_PICTURES)
def test_the_end_of_a_round_changes_no_weight(name: str, targets: tuple[str, ...]) -> None:
    adapter = adapter_of(name, targets=targets)
    for task in TASKS:
        adapter.before_task(task, None)
        fill(adapter, task.index)
        before = {site.name: adapter.dense(site) for site in adapter.sites}
        adapter.after_task(task, None)
        for site in adapter.sites:
            dense, expected = adapter.dense(site), before[site.name]
            assert dense is not None
            assert expected is not None
            assert expected.abs().max() > 0.01
            torch.testing.assert_close(dense, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("form", ["directions", "routes", "weights"])
def test_each_route_is_held_against_the_old_one_of_its_own_site(form: Any) -> None:
    adapter = adapter_of("routed", rank=4, penalty=0.3, penalty_form=form)
    assert isinstance(adapter, Routed)
    adapter.before_task(TASKS[0], None)
    fill(adapter, 0)
    old = {site.name: adapter.delta[site_key(site)].detach().clone() for site in adapter.sites}
    adapter.after_task(TASKS[0], None)
    adapter.before_task(TASKS[1], None)
    fill(adapter, 1)
    expected = 0.0
    for site in adapter.sites:
        new, up = adapter.delta[site_key(site)].detach(), adapter.up[site_key(site)].detach()
        guard = torch.linalg.svd(old[site.name])[0][:, :2] if form == "directions" else old[site.name]
        changed = up.T @ up @ new if form == "weights" else new
        expected += 0.3 * float((guard.T @ changed).square().sum())
    penalty = adapter.penalty()
    assert penalty is not None
    assert penalty.item() == pytest.approx(expected, rel=1e-4)


def test_routes_are_those_of_their_sites() -> None:
    adapter = Routed(RoutedConfig(rank=4), adapter_of("routed").sites, create_backbone("random:dinov2-tiny", 28).info)
    adapter.before_task(TASKS[0], None)
    fill(adapter, 0)
    learned = {site.name: adapter.delta[site_key(site)].detach().clone() for site in adapter.sites}
    adapter.after_task(TASKS[0], None)
    for site in adapter.sites:
        assert torch.equal(adapter.old[adapter.index[site.name]], learned[site.name])


def test_magnitudes_weigh_the_directions_of_their_own_sites() -> None:
    """A round that repeats an old direction is found to be one, whatever the order of the sites."""
    adapter = adapter_of("sdlora", merge_threshold=0.01)
    assert isinstance(adapter, SDLora)
    assert isinstance(adapter.config, SDLoraConfig)
    adapter.before_task(TASKS[0], None)
    fill(adapter, 0)
    pairs = {
        site_key(site): (adapter.down[site_key(site)].detach().clone(), adapter.up[site_key(site)].detach().clone())
        for site in adapter.sites
    }
    adapter.after_task(TASKS[0], None)
    adapter.before_task(TASKS[1], None)
    with torch.no_grad():
        for key, (down, up) in pairs.items():
            adapter.down[key].copy_(down)
            adapter.up[key].copy_(up * 0.5)
    x = torch.eye(adapter.sites[0].inputs)
    before = {site.name: adapter.dense(site) for site in adapter.sites}
    adapter.after_task(TASKS[1], None)
    assert len(adapter.magnitudes) == 1  # merged into the first
    for site in adapter.sites:
        torch.testing.assert_close(adapter.dense(site), before[site.name], atol=1e-5, rtol=1e-4)
        assert adapter(site, x, Context()) is not None or adapter.folded(site) is not None
