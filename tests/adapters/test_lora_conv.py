"""LoRA on convolutions: values of PEFT, exact merging, default targets, and which adapters stay off convolutions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sapwood.adapted import AdaptedConv, Slot, adapted
from sapwood.adapters import ADAPTERS
from sapwood.adapters.base import SITE_KINDS, choose_sites
from sapwood.adapters.lora import Lora, LoraConfig
from sapwood.backbones import Kernel, Site, create_backbone
from sapwood.errors import ConfigError
from sapwood.functional.low_rank import compose, conv_lora_delta

from .lora_networks import FIRST, drawn, network_of

TINY = "random:resnet-tiny"
# Kernel, stride, padding, dilation.
GEOMETRIES = {
    "plain": (3, 1, 1, 1),
    "strided": (3, 2, 1, 1),
    "dilated": (3, 1, 2, 2),
    "points": (1, 1, 0, 1),
    "strided points": (1, 2, 0, 1),
    "rectangular": ((3, 1), (1, 2), (2, 0), (2, 1)),
}


def pixels() -> Tensor:
    return torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(2))


def ramp(like: Tensor) -> Tensor:
    return torch.linspace(-1, 1, like.numel(), dtype=like.dtype).view_as(like)


@torch.no_grad()
def give(layer: Any, down: Tensor, up: Tensor) -> None:
    """Put the factors into PEFT's layer; also the dilation, which PEFT 0.21 forgets and then fails on."""
    layer.lora_A["default"].dilation = layer.get_base_layer().dilation
    layer.lora_A["default"].weight.copy_(down)
    layer.lora_B["default"].weight.copy_(up)


def close(one: Tensor, two: Tensor) -> None:
    torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_a_layer_is_that_of_peft(geometry: Any) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(3)
    size, stride, padding, dilation = geometry
    base = nn.Conv2d(5, 7, size, stride, padding, dilation).requires_grad_(False)
    kernel = Kernel(base.kernel_size, base.stride, base.padding, base.dilation)  # type: ignore[arg-type]
    site = Site("stage.0.block.0.conv2", "conv", 5, 7, "stage.0.block.0.conv2", "conv", kernel=kernel)
    adapter = drawn(Lora(LoraConfig(rank=3, alpha=7.0, targets=("conv2",)), [site], create_backbone(TINY).info))
    adapter, base = adapter.double(), base.double()
    ours = adapted(base, [site], Slot(adapter))
    assert isinstance(ours, AdaptedConv)
    down, up = adapter.down["stage_0_block_0_conv2"], adapter.up["stage_0_block_0_conv2"]

    holder = nn.Sequential(nn.Conv2d(5, 7, size, stride, padding, dilation)).double()
    holder.load_state_dict({"0.weight": base.weight, "0.bias": base.bias})
    peft.inject_adapter_in_model(peft.LoraConfig(r=3, lora_alpha=7, target_modules=["0"]), holder)
    theirs = holder[0].double()
    give(theirs, down, up)

    x = torch.randn(2, 5, 9, 8, dtype=torch.float64)
    answers, inputs = [], [x.clone().requires_grad_(True) for _ in range(2)]
    for layer, given in zip((ours, theirs), inputs, strict=True):
        answers.append(layer(given))
        (answers[-1] * ramp(answers[-1])).sum().backward()
    close(*answers)
    assert (answers[0] - base(x)).abs().max() > 1e-2
    assert base.weight.grad is None
    for mine, other in (
        (inputs[0].grad, inputs[1].grad),
        (down.grad, theirs.lora_A["default"].weight.grad),
        (up.grad, theirs.lora_B["default"].weight.grad),
    ):
        assert mine is not None
        assert mine.abs().max() > 0
        close(mine, other)

    original = base.weight.clone()
    ours.change({site.name: adapter.dense(site)})
    ours.live = False
    theirs.merge()
    close(ours.weight, theirs.get_base_layer().weight)
    close(ours(x), answers[0])
    assert torch.equal(base.weight, original)


def test_a_network_is_that_of_peft() -> None:
    peft = pytest.importorskip("peft")
    ours, theirs = create_backbone(TINY), create_backbone(TINY)
    network = network_of(drawn(Lora(LoraConfig(rank=2, alpha=3.0), ours.sites, ours.info)), ours).double()
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["layer.1.convolution"])
    model = peft.get_peft_model(theirs.model, config).eval().double()
    adapter, layers = network.adapter, {}
    for site in adapter.sites:
        key = site.name.replace(".", "_")
        layers[key] = model.get_submodule(f"base_model.{site.module}")
        give(layers[key], adapter.down[key], adapter.up[key])
    assert len(layers) == ours.info.depth  # the 3x3 of every block, by default

    images = pixels().double()
    one, two = ours(images).levels[-1], model(pixel_values=images).last_hidden_state
    with network.bare(), torch.no_grad():
        assert (ours(images).levels[-1] - one).abs().max() > 1e-3
    close(one, two)
    for answer in (one, two):
        (answer * ramp(answer)).mean().backward()
    for key, layer in layers.items():
        for mine, other in ((adapter.down, layer.lora_A), (adapter.up, layer.lora_B)):
            assert mine[key].grad.abs().max() > 0
            close(mine[key].grad, other["default"].weight.grad)
    with torch.no_grad():
        network.merge()
        model.merge_adapter()
        close(ours(images).levels[-1], one)
        for wrapped, layer in zip(network.adapted, layers.values(), strict=True):
            close(wrapped.weight, layer.weight)
        network.unmerge()
        assert torch.equal(ours(images).levels[-1], one)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_the_pair_is_a_convolution_with_the_composed_weight(geometry: Any) -> None:
    """In float64, against the sum over the rank written out."""
    size, stride, padding, dilation = geometry
    like = nn.Conv2d(4, 5, size, stride, padding, dilation)
    generator = torch.Generator().manual_seed(4)
    down = torch.randn(2, 4, *like.kernel_size, dtype=torch.float64, generator=generator, requires_grad=True)
    up = torch.randn(5, 2, 1, 1, dtype=torch.float64, generator=generator, requires_grad=True)
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = compose(down, up, 0.7)
    assert weight.shape == (5, 4, *like.kernel_size)
    by_hand = sum(0.7 * up[:, rank, 0, 0].view(-1, 1, 1, 1) * down[rank] for rank in range(2))
    torch.testing.assert_close(weight, by_hand)

    options = {"stride": like.stride, "padding": like.padding, "dilation": like.dilation}
    given = conv_lora_delta(x, down, up, 0.7, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(given, F.conv2d(x, weight, **options))  # type: ignore[call-overload]
    assert torch.autograd.gradcheck(lambda *args: conv_lora_delta(*args, 0.7, **options), (x, down, up))  # type: ignore[arg-type]


def test_the_start_changes_nothing_and_comes_from_the_seed() -> None:
    """A as PEFT draws it, within 1 / sqrt(in * kh * kw); B is zero."""
    backbone = create_backbone(TINY)
    adapters = [Lora(LoraConfig(rank=4), backbone.sites, backbone.info) for _ in range(2)]
    torch.manual_seed(1)
    adapters[0].before_task(FIRST, None)
    torch.manual_seed(2)
    adapters[1].before_task(FIRST, None)
    for site in adapters[0].sites:
        key = site.name.replace(".", "_")
        down = adapters[0].down[key]
        assert torch.equal(down, adapters[1].down[key])
        assert down.shape == (4, site.inputs, 3, 3)
        bound = (site.inputs * 9) ** -0.5
        assert 0.9 * bound < down.abs().max() <= bound
        assert adapters[0].up[key].shape == (site.outputs, 4, 1, 1)
        assert not adapters[0].up[key].any()


@torch.no_grad()
def test_a_folded_round_lies_in_the_weight() -> None:
    backbone = create_backbone(TINY)
    network = network_of(drawn(Lora(LoraConfig(rank=2, reinit=True), backbone.sites, backbone.info)), backbone)
    before = backbone(pixels()).patches
    network.adapter.after_task(FIRST, None)
    network.refold()
    torch.testing.assert_close(backbone(pixels()).patches, before, atol=1e-5, rtol=1e-5)
    again = Lora(LoraConfig(rank=2, reinit=True), network.adapter.sites, backbone.info)
    again.load([network.adapter.state()])
    for site in again.sites:
        assert torch.equal(again.folded(site), network.adapter.folded(site))


def test_targets() -> None:
    sites = create_backbone(TINY).sites
    assert {site.part for site in choose_sites(sites, LoraConfig().targets, "all")} == {"conv2"}
    assert {site.part for site in choose_sites(sites, ("conv1", "conv3"), "all")} == {"conv1", "conv3"}
    names = [site.name for site in choose_sites(sites, ("q", "v"), "1,-1")]
    assert names == ["stage.1.block.0.conv2", "stage.3.block.1.conv2"]
    with pytest.raises(ConfigError, match="no projection q, fc1; it has conv1, conv2, conv3"):
        choose_sites(sites, ("q", "fc1"), "all")
    with pytest.raises(ConfigError, match="none given"):
        choose_sites(sites, (), "all")
    plain = create_backbone("random:dinov2-tiny").sites
    with pytest.raises(ConfigError, match="no projection conv2; it has fc1, fc2, k, o, q, v"):
        choose_sites(plain, ("conv2",), "all")


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_serves_convolutions_or_says_why_not(name: str) -> None:
    entry = ADAPTERS[name]
    assert entry.site_kinds
    assert entry.site_kinds <= SITE_KINDS
    assert ("conv" in entry.site_kinds) == (name in ("lora", "none", "full"))
    backbone = create_backbone(TINY)
    if "conv" in entry.site_kinds:
        network = network_of(entry(entry.Config(), backbone.sites, backbone.info), backbone)
        assert network.tokens(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))[0].patches.shape == (1, 4, 32)
        return
    with pytest.raises(ConfigError) as caught:
        entry(entry.Config(), backbone.sites, backbone.info)
    says = str(caught.value)
    assert f"{entry.__name__} is made for linear layers" in says
    assert f"conv2 of {TINY} are convolutions; take the adapter lora, full or none" in says
    assert "\n" not in says
