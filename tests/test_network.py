"""One forward from pictures to logits: attaching, merging, precision."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sapwood.adapted import AdaptedLinear
from sapwood.adapters import ADAPTERS
from sapwood.adapters.base import Context
from sapwood.backbones import create_backbone
from sapwood.backbones.base import fingerprint
from sapwood.depths import reading
from sapwood.errors import NotMergeable
from sapwood.heads import HEADS
from sapwood.heads.base import Features
from sapwood.network import Network
from sapwood.task import Task


def network_with(adapter_name: str = "lora", head_name: str = "linear", **settings: Any) -> Network:
    backbone = create_backbone("random:dinov2-tiny", 28)
    adapter_type = ADAPTERS[adapter_name]
    adapter = adapter_type(adapter_type.Config(**settings), backbone.sites, backbone.info)
    adapter.before_task(Task(0, "first", (0, 1, 2), (0, 1, 2), 3, seed=0), None)
    head = HEADS[head_name](HEADS[head_name].Config(), backbone.info.dim)
    head.grow(3, torch.Generator().manual_seed(0))
    head.classifier.draw_idle(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return Network(backbone, adapter, head)


def images(count: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (count, 28, 28, 3), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def predict(network: Network) -> Tensor:
    return network.predict(images())


def test_only_the_chosen_projections_are_wrapped() -> None:
    network = network_with(targets=("k", "fc2"), blocks="1")
    assert sorted(site.name for layer in network.adapted for site in layer.sites) == ["block.1.fc2", "block.1.k"]
    wrapped = [module for module in network.backbone.modules() if isinstance(module, AdaptedLinear)]
    assert wrapped == network.adapted
    names = set(network.trainable())
    assert {name.split(".")[0] for name in names} == {"adapter", "head"}
    assert all(not parameter.requires_grad for parameter in network.backbone.parameters())


def test_predictions_and_training_logits_may_differ() -> None:
    network = network_with(head_name="prototype")
    tokens = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    network.head.fit(Features(tokens, torch.arange(6) % 3), None, torch.Generator().manual_seed(0))
    predicted = predict(network)
    assert predicted.shape == network(images()).logits.shape == (5, 3)
    assert predicted.abs().max() <= 1  # cosines
    assert not torch.allclose(predicted, network(images()).logits)


def test_merging_touches_no_weight_and_is_undone_bit_for_bit() -> None:
    network = network_with(targets=("q", "k", "v", "o", "fc1", "fc2"))
    before, weights = predict(network), fingerprint(network.backbone)
    network.merge()
    torch.testing.assert_close(predict(network), before, atol=1e-5, rtol=0)
    with torch.no_grad():
        for parameter in network.adapter.parameters():
            parameter.zero_()
    torch.testing.assert_close(predict(network), before, atol=1e-5, rtol=0)  # the adapter is asked no more
    assert fingerprint(network.backbone) == weights
    network.unmerge()
    with network.bare():
        bare = predict(network)
    assert torch.equal(predict(network), bare)  # it was zeroed


def test_what_cannot_be_merged_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_with()
    before = predict(network)
    whole, calls = network.adapter.dense, []

    def dense(site: Any) -> Tensor | None:
        calls.append(site)
        if len(calls) == 3:
            raise NotMergeable("gated")
        return whole(site)

    monkeypatch.setattr(network.adapter, "dense", dense)
    with pytest.raises(NotMergeable):
        network.merge()
    assert torch.equal(predict(network), before)
    assert all(layer.live and layer.changed is None for layer in network.adapted)


def test_bare_is_the_backbone_as_it_came_even_when_merged() -> None:
    plain = create_backbone("random:dinov2-tiny", 28)
    network = network_with()
    pixels = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = plain(pixels).pooled
        for merged in (False, True):
            if merged:
                network.merge()
            changed = network.backbone(pixels).pooled
            with network.bare():
                assert torch.equal(network.backbone(pixels).pooled, expected)
            assert torch.equal(network.backbone(pixels).pooled, changed)
            assert not torch.allclose(changed, expected)


def test_frozen_weights_are_held_in_bf16_once() -> None:
    network = network_with()
    exact = predict(network)
    network.set_precision("bf16")
    assert {parameter.dtype for parameter in network.backbone.parameters()} == {torch.bfloat16}
    parts: list[nn.Module] = [network.adapter, network.head]
    assert {parameter.dtype for part in parts for parameter in part.parameters()} == {torch.float32}
    rough = predict(network)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, atol=0.1, rtol=0)
    network.merge()
    torch.testing.assert_close(predict(network), exact, atol=0.1, rtol=0)
    network.unmerge()
    assert torch.equal(predict(network), rough)
    with pytest.raises(ValueError, match="rounded to bf16; load the network anew"):
        network.set_precision("fp32")


def test_weights_that_train_stay_in_fp32() -> None:
    network = network_with("full")
    exact = predict(network)
    network.set_precision("bf16")
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    rough = predict(network)
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, atol=0.1, rtol=0)
    network.set_precision("fp32")
    assert torch.equal(predict(network), exact)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_gradients_reach_every_trained_weight(adapter: str, precision: str) -> None:
    network = network_with(adapter)
    network.set_precision(precision)
    network(images()).logits.square().sum().backward()
    missing = [name for name, parameter in network.trainable().items() if parameter.grad is None]
    assert [name for name in missing if "mask_token" not in name] == []  # only pre-training uses that one
    assert {p.grad.dtype for p in network.trainable().values() if p.grad is not None} == {torch.float32}


def test_the_context_lives_as_long_as_the_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_with()
    noted: list[Context] = []
    live = network.adapter.forward

    def forward(site: Any, x: Tensor, context: Context) -> Any:
        noted.append(context)
        return live(site, x, context)

    def plan(pixels: Tensor, asked: Network) -> Context:
        assert asked is network
        return Context({"mean": pixels.mean((1, 2, 3))})

    def calibrate(logits: Tensor, context: Context) -> Tensor:
        return logits + context.values["mean"][:, None]

    plain = predict(network)
    monkeypatch.setattr(network.adapter, "forward", forward)
    monkeypatch.setattr(network.adapter, "plan", plan)
    monkeypatch.setattr(network.adapter, "calibrate", calibrate)
    shifted = predict(network)
    assert len(noted) == len(network.adapter.sites)
    assert len({id(context) for context in noted}) == 1
    torch.testing.assert_close(shifted - plain, noted[0].values["mean"][:, None].expand(5, 3), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(network(images()).logits, plain)  # training logits are not calibrated
    assert network.slot.context.values == {}


def test_a_backbone_is_lent_as_it_came_on_the_same_tensors() -> None:
    network = network_with(targets=("q", "fc2"))
    before = predict(network)
    lent = network.lent(asdict(network.backbone.info), 28, torch.device("cpu"), "fp32")
    assert lent is not None
    assert {p.data_ptr() for p in lent.parameters()} == {p.data_ptr() for p in network.backbone.parameters()}
    assert not any(isinstance(module, AdaptedLinear) for module in lent.modules())
    with torch.no_grad(), network.bare():
        assert torch.equal(lent(network.pixels(images())).pooled, network.tokens(images())[0].pooled)
    other = Network(lent, network.adapter, network.head)
    other.merge()
    assert torch.equal(predict(network), before)
    torch.testing.assert_close(predict(other), before, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "size", "precision"), [({"sha256": "0"}, 28, "fp32"), ({}, 42, "fp32"), ({}, 28, "bf16")]
)
def test_other_weights_are_not_lent(change: dict[str, str], size: int, precision: str) -> None:
    network = network_with()
    assert network.lent(asdict(network.backbone.info) | change, size, torch.device("cpu"), precision) is None


def test_weights_that_train_are_not_lent() -> None:
    network = network_with("full")
    assert network.lent(asdict(network.backbone.info), 28, torch.device("cpu"), "fp32") is None


def test_what_is_lent_holds_no_hook_of_a_forward_that_runs() -> None:
    network = network_with()
    with reading(network.backbone, (0, 1)):
        lent = network.lent(asdict(network.backbone.info), 28, torch.device("cpu"), "fp32")
        assert any(module._forward_hooks for module in network.backbone.modules()), "else this test says nothing"
    assert lent is not None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lent.modules())
