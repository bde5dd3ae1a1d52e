"""LoRA against PEFT's on the same weights, fused against separate projections, and its settings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sapwood.adapted import AdaptedLinear, Slot
from sapwood.adapters.base import Context, choose_sites
from sapwood.adapters.lora import Lora, LoraConfig
from sapwood.backbones import create_backbone
from sapwood.backbones.base import Site, fingerprint
from sapwood.errors import ConfigError
from sapwood.network import Network
from sapwood.task import Task

from .lora_networks import FIRST, SIZE, TINY, close, lora, network_of, pictures


@pytest.fixture
def pair() -> tuple[Network, Any]:
    """Our network and PEFT's model over two copies of one backbone, with the same factors."""
    peft = pytest.importorskip("peft")
    ours, theirs = create_backbone(TINY, SIZE), create_backbone(TINY, SIZE)
    assert fingerprint(ours) == fingerprint(theirs)
    adapter = lora(ours, rank=4, alpha=10.0, targets=("q", "v"))
    config = peft.LoraConfig(r=4, lora_alpha=10, target_modules=["q_proj", "v_proj"], lora_dropout=0.0, bias="none")
    model = peft.get_peft_model(theirs.model, config)
    parts = {"q": "q_proj", "v": "v_proj"}
    with torch.no_grad():
        for site in adapter.sites:
            layer = model.get_submodule(f"base_model.model.encoder.layer.{site.block}.attention.{parts[site.part]}")
            key = site.name.replace(".", "_")
            layer.lora_A["default"].weight.copy_(adapter.down[key])
            layer.lora_B["default"].weight.copy_(adapter.up[key])
    return network_of(adapter, ours), model.eval()


def outputs(pair: tuple[Network, Any]) -> tuple[Tensor, Tensor]:
    network, model = pair
    tokens = network.backbone(pictures())
    theirs = model(pixel_values=pictures()).last_hidden_state
    return torch.cat([tokens.pooled[:, None], tokens.patches], 1), theirs


def test_forward_and_gradients_are_those_of_peft(pair: tuple[Network, Any]) -> None:
    network, model = pair
    ours, theirs = outputs(pair)
    with network.bare(), torch.no_grad():
        assert (network.backbone(pictures()).pooled - ours[:, 0]).abs().max() > 1e-2  # the adapter does something
    close(ours, theirs)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(3)) / ours.numel()
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    adapter = network.adapter
    theirs_by_name = dict(model.named_parameters())
    compared = 0
    for site in adapter.sites:
        part = {"q": "q_proj", "v": "v_proj"}[site.part]
        base = f"base_model.model.encoder.layer.{site.block}.attention.{part}"
        key = site.name.replace(".", "_")
        for factor, letter in ((adapter.down[key], "A"), (adapter.up[key], "B")):
            other = theirs_by_name[f"{base}.lora_{letter}.default.weight"].grad
            assert factor.grad is not None
            assert factor.grad.abs().max() > 0
            close(factor.grad, other)
            compared += 1
    assert compared == 2 * 2 * network.backbone.info.depth
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == len(network.trainable()) - 2  # ours counts the head's weight and bias


@torch.no_grad()
def test_merged_weights_are_those_of_peft(pair: tuple[Network, Any]) -> None:
    network, model = pair
    before, _ = outputs(pair)
    network.merge()
    model.merge_adapter()
    ours, theirs = outputs(pair)
    close(ours, theirs)
    close(ours, before)
    for layer in network.adapted:
        (site,) = layer.sites
        part = {"q": "q_proj", "v": "v_proj"}[site.part]
        close(
            layer.changed,
            model.get_submodule(f"base_model.model.encoder.layer.{site.block}.attention.{part}").weight,
        )
    network.unmerge()
    model.unmerge_adapter()
    ours, theirs = outputs(pair)
    assert torch.equal(ours, before)
    close(ours, theirs)


@pytest.fixture
def fused_and_separate() -> tuple[AdaptedLinear, dict[str, AdaptedLinear], Lora]:
    """One linear layer that holds q, k and v, the same as three layers, and one adapter on q and v for both."""
    generator = torch.Generator().manual_seed(0)
    width = 6
    fused = nn.Linear(width, 3 * width)
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.normal_(generator=generator)
    fused.requires_grad_(False)
    rows = {part: (index * width, (index + 1) * width) for index, part in enumerate("qkv")}
    sites = [Site(f"block.0.{part}", "linear", width, width, "block.0.attn", "qkv", rows=rows[part]) for part in rows]
    adapter = lora(SimpleNamespace(sites=sites, info=None), rank=2)
    slot = Slot(adapter)
    separate = {}
    for part, (start, stop) in rows.items():
        layer = nn.Linear(width, width)
        layer.load_state_dict({"weight": fused.weight[start:stop], "bias": fused.bias[start:stop]})
        own = [Site(f"block.0.{part}", "linear", width, width, "block.0.attn", part)] if part != "k" else []
        separate[part] = AdaptedLinear(layer.requires_grad_(False), own, slot)
    return AdaptedLinear(fused, list(adapter.sites), slot), separate, adapter


def test_fused_projection_equals_separate_ones(
    fused_and_separate: tuple[AdaptedLinear, dict[str, AdaptedLinear], Lora],
) -> None:
    fused, separate, adapter = fused_and_separate
    assert [site.part for site in adapter.sites] == ["q", "v"]
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))
    one = fused(x)
    two = torch.cat([layer(x) for layer in separate.values()], -1)
    torch.testing.assert_close(one, two, atol=1e-6, rtol=0)
    weights = torch.randn(one.shape, generator=torch.Generator().manual_seed(2))
    gradients = [
        torch.autograd.grad((out * weights).sum(), list(adapter.parameters()), retain_graph=True) for out in (one, two)
    ]
    for mine, other in zip(*gradients, strict=True):
        assert mine.abs().max() > 0
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_fused_projection_merges_its_own_rows(
    fused_and_separate: tuple[AdaptedLinear, dict[str, AdaptedLinear], Lora],
) -> None:
    fused, _, adapter = fused_and_separate
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))
    before, base = fused(x), fused.base.weight.clone()
    fused.change({site.name: adapter.dense(site) for site in adapter.sites})
    fused.live = False
    torch.testing.assert_close(fused(x), before, atol=1e-5, rtol=0)
    assert fused.changed is not None
    assert torch.equal(fused.changed[6:12], base[6:12])  # k is no site
    assert torch.equal(fused.base.weight, base)
    fused.change(dict.fromkeys((site.name for site in adapter.sites), None))
    fused.live = True
    assert fused.changed is None
    assert torch.equal(fused(x), before)


def test_starts_as_the_backbone_itself_and_draws_by_seed() -> None:
    backbone = create_backbone(TINY, SIZE)
    plain = backbone(pictures()).pooled
    adapter = Lora(LoraConfig(rank=4), backbone.sites, backbone.info)
    adapter.before_task(FIRST, None)
    network = network_of(adapter, backbone)
    assert torch.equal(network.backbone(pictures()).pooled, plain)
    for site in adapter.sites:
        down, bound = adapter.down[site.name.replace(".", "_")], site.inputs**-0.5
        assert down.abs().max() <= bound  # Kaiming-uniform with a = sqrt(5)
        assert down.std().item() == pytest.approx(bound / 3**0.5, rel=0.2)
    drawn = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    adapter.before_task(Task(1, "second", (2,), (2,), 3, seed=5), None)  # later rounds go on from where it is
    assert all(torch.equal(tensor, drawn[name]) for name, tensor in adapter.state_dict().items())
    adapter.before_task(Task(0, "first", (0, 1), (0, 1), 2, seed=6), None)
    assert not torch.equal(adapter.down["block_0_q"], drawn["down.block_0_q"])


def test_scale_is_alpha_over_rank() -> None:
    backbone = create_backbone(TINY, SIZE)
    adapter = lora(backbone, rank=4, alpha=6.0)
    site = adapter.sites[0]
    x = torch.randn(3, site.inputs, generator=torch.Generator().manual_seed(4))
    down, up = adapter.down["block_0_q"], adapter.up["block_0_q"]
    expected = 1.5 * torch.einsum("bi,ri,or->bo", x, down, up)
    torch.testing.assert_close(adapter(site, x, Context()), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(adapter.dense(site), 1.5 * up.detach() @ down.detach(), atol=1e-6, rtol=0)


def test_trains_two_factors_a_site_and_stores_them_alone() -> None:
    backbone = create_backbone(TINY, SIZE)
    adapter = lora(backbone, rank=3, targets=("q", "k", "v", "o", "fc1", "fc2"), blocks="-1:")
    expected = sum(3 * (site.inputs + site.outputs) for site in backbone.sites if site.block == 1)
    assert sum(parameter.numel() for parameter in adapter.parameters()) == expected
    tensors, meta = adapter.state()
    assert sum(tensor.numel() for tensor in tensors.values()) == expected
    assert meta == {}
    other = Lora(adapter.config, backbone.sites, backbone.info)
    other.load([({}, {}), (tensors, meta)])  # the last round's file holds everything
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize(
    ("blocks", "expected"), [("all", {0, 1, 2, 3}), ("0,2", {0, 2}), ("-2:", {2, 3}), ("1:3", {1, 2}), ("-1", {3})]
)
def test_blocks_are_chosen(blocks: str, expected: set[int]) -> None:
    sites = [Site(f"block.{i}.{part}", "linear", 2, 2, f"block.{i}.attn", "") for i in range(4) for part in "qkv"]
    chosen = choose_sites(sites, ["v"], blocks)
    assert {site.block for site in chosen} == expected
    assert {site.part for site in chosen} == {"v"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, r"adapter\.rank must be >= 1, got 0"),
        ({"alpha": -1.0}, r"adapter\.alpha must be > 0, got -1.0"),
        ({"targets": ("q", "gate")}, r"adapter\.targets: no projection gate; it has fc1, fc2, k, o, q, v"),
        ({"targets": ()}, r"adapter\.targets: no projection \(none given\)"),
        ({"blocks": "7"}, r"adapter\.blocks: '7' is not a block of 0\.\.1"),
        ({"blocks": "first"}, r"adapter\.blocks: 'first' is not a block"),
        ({"blocks": "5:"}, r"adapter\.blocks=5: names no block of 0\.\.1"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    backbone = create_backbone(TINY, SIZE)
    with pytest.raises(ConfigError, match=message):
        Lora(LoraConfig(**settings), backbone.sites, backbone.info)
