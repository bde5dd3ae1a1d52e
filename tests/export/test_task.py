"""One round's expert of a method that chooses: its weights, its classes, and who is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sapwood.adapters.base import Context, site_key
from sapwood.errors import ConfigError, NotMergeable
from sapwood.export import Plain, export
from sapwood.learner import Learner

Taught = Callable[..., Path]
MakePlain = Callable[..., Plain]

PIXELS = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(0))


def with_expert(learner: Learner, index: int) -> Tensor:
    """Logits where every picture is told which expert to take, in the forward of the live adapter."""
    network = learner.network
    with torch.no_grad():
        network.slot.context = Context({"expert": torch.full((len(PIXELS),), index)})
        return network.head(network.backbone(PIXELS)) / network.head.temperature


@pytest.mark.parametrize(("task", "names"), [(1, ("ant", "bee")), (2, ("cat", "dog"))])
def test_an_expert_alone(task: int, names: tuple[str, ...], plain: MakePlain, taught: Taught) -> None:
    one = plain("color", task=task)
    assert one.merged
    assert one.classes == names
    expected = with_expert(Learner.open(taught("color"), device="cpu"), task - 1)
    torch.testing.assert_close(one(PIXELS), expected[:, 2 * task - 2 : 2 * task], atol=1e-5, rtol=0)
    other = with_expert(Learner.open(taught("color"), device="cpu"), 2 - task)
    assert (one(PIXELS) - other[:, 2 * task - 2 : 2 * task]).abs().max() > 1e-4  # the experts do differ


@pytest.mark.parametrize("task", [1, 2])
def test_a_residual_pair_with_its_gate_open(task: int, plain: MakePlain, taught: Taught) -> None:
    one = plain("dual-lora", task=task)
    learner = Learner.open(taught("dual-lora"), device="cpu")
    adapter: Any = learner.network.adapter
    backbone: Any = learner.network.backbone
    bare = {site.name: backbone.get_submodule(site.module) for site in adapter.sites}
    differs = 0
    for site in adapter.sites:
        key = site_key(site)
        expected = bare[site.name].base.weight.clone()
        for tensors, _ in adapter.past:
            expected += tensors[f"up.{key}"] @ tensors[f"down.{key}"]
        own = adapter.past[task - 1][0]
        if f"residual_up.{key}" in own:
            residual = own[f"residual_up.{key}"] @ own[f"residual_down.{key}"]
            expected += residual
            differs += int(residual.abs().max() > 1e-6)
        torch.testing.assert_close(one.backbone.get_submodule(site.module).weight, expected, atol=1e-6, rtol=0)
    assert bool(differs) == (task == 2)  # before the first round there is nothing a residual could be of


def test_who_is_refused(taught: Taught, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=r"the adapter lora has one weight for the pictures of all rounds"):
        export(taught("seq-lora"), out, task=1)
    with pytest.raises(ConfigError, match=r"--task 3: the state has rounds 1\.\.2"):
        export(taught("color"), out, task=3)
    with pytest.raises(NotMergeable, match=r"each picture takes the expert of its own round.*--task N \(1\.\.2\)"):
        export(taught("color"), out)
    with pytest.raises(NotMergeable, match=r"gates scale what it adds.*--task N"):
        export(taught("dual-lora"), out)
    assert list(tmp_path.glob("*out*")) == []


def test_one_round_leaves_as_a_stock_classifier(taught: Taught, tmp_path: Path) -> None:
    made = export(taught("color"), tmp_path / "out", task=2)
    assert made.facts["classes"] == ["cat", "dog"]
    assert made.facts["task"] == 2
    assert made.facts["class"] == "Dinov2ForImageClassification"
    assert "the expert of round 2 alone" in (tmp_path / "out" / "README.md").read_text()
