"""What an objective asks of a network: all of it from one forward, and nothing that was not asked for."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sapwood.data.mask_views import MaskBatch
from sapwood.errors import ConfigError
from sapwood.feeds import MaskFeed
from sapwood.network import Network, Teacher
from sapwood.objectives.base import NEEDS, Outputs

from .helpers import images, network_on


def hooks_of(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


@contextmanager
def during(network: Network, look: Callable[[], None]) -> Iterator[None]:
    """Look around in the middle of the forwards inside."""
    module = network.backbone
    inner = module.forward

    def forward(pixels: Tensor) -> Any:
        look()
        return inner(pixels)

    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.forward


def test_the_network_stays_on_fused_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_on("random:vit-tiny")
    calls = 0
    fused = nn.functional.scaled_dot_product_attention

    def counted(*args: Any, **options: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return fused(*args, **options)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", counted)
    with network.watching({"attention", "saliency", "maps"}):
        network(images(network))
    assert calls == network.backbone.info.depth  # one forward


def test_parts_add_up_to_the_logits() -> None:
    network = network_on("random:dinov2-tiny")
    with torch.no_grad(), network.watching({"parts", "grid"}):
        outputs = network(images(network))
    assert outputs.parts is not None
    assert outputs.grid_logits is not None
    plus, minus = outputs.parts
    bias = network.head.classifier.get_parameter("bias")[:, None, None]
    torch.testing.assert_close(plus + minus + bias, outputs.grid_logits, atol=1e-5, rtol=1e-5)
    assert minus.min() < minus.max() <= 0 <= plus.min() < plus.max()  # features are behind a ReLU
    stems = network_on("random:dinov2-tiny", stem="per_task")
    with stems.watching({"parts"}), pytest.raises(ConfigError, match=r"head\.stem must be shared"):
        stems(images(stems))


def test_gradients_reach_the_adapter_through_what_is_seen() -> None:
    network = network_on("random:dinov2-tiny")
    with network.watching({"attention", "maps", "saliency"}):
        outputs = network(images(network))
    assert outputs.saliency is not None
    assert not outputs.saliency.requires_grad
    for seen in (outputs.attention[0][..., 0].sum(), outputs.maps[0].square().mean()):
        found = torch.autograd.grad(seen, list(network.adapter.parameters()), retain_graph=True, allow_unused=True)
        assert any(gradient is not None and gradient.abs().max() > 0 for gradient in found)
    # A finite difference of the recomputed attention, through a weight of the adapter that acts on keys.
    weight = network.adapter.get_parameter("up.block_0_k")

    def value() -> Tensor:
        with network.watching({"attention"}):
            return (network(images(network)).attention[0][..., :3] ** 2).sum()

    (gradient,) = torch.autograd.grad(value(), weight)
    step = 1e-2
    with torch.no_grad():
        weight[3, 0] += step
        higher = value()
        weight[3, 0] -= 2 * step
        lower = value()
    assert float(higher - lower) / (2 * step) == pytest.approx(float(gradient[3, 0]), rel=2e-2, abs=1e-4)


def test_who_asks_for_nothing_pays_nothing() -> None:
    network = network_on("random:dinov2-tiny")
    before, counts = hooks_of(network), []
    with during(network, lambda: counts.append(hooks_of(network) - before)):
        for needs in ((), ("teacher", "features", "grid", "parts"), ("saliency",), ("maps",), ("maps", "attention")):
            with network.watching(needs):
                assert hooks_of(network) == before
                network(images(network))
                network.predict(images(network))  # nothing is needed of predictions
                network.tokens(images(network))
    assert counts == [*[0] * 6, 2, 0, 0, 2, 0, 0, 6, 0, 0]
    assert hooks_of(network) == before
    outputs = network(images(network))
    assert outputs == Outputs(outputs.logits)
    with network.watching({"teacher"}):
        outputs = network(images(network))
    assert outputs == Outputs(outputs.logits)
    with network.watching({"features"}):
        features = network(images(network)).features
    assert features is not None
    assert torch.equal(features, network.tokens(images(network))[0].patches)


def test_hooks_go_when_a_forward_fails() -> None:
    network = network_on("random:dinov2-tiny")
    before = hooks_of(network)
    with network.watching({"maps", "attention"}):
        with pytest.raises(ConfigError, match="patches of 14 px"):
            network(torch.zeros(1, 15, 28, 3, dtype=torch.uint8))
        with network.watching(()):
            assert network(images(network)).maps == ()
        assert network.watched == {"maps", "attention"}
    assert hooks_of(network) == before
    assert network.watched == frozenset()
    with pytest.raises(ValueError, match="nothing is known of map; needs: attention, features, grid"):
        network.watching({"map"}).__enter__()


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_a_teacher_sees_its_own(adapter: str) -> None:
    network = network_on("random:dinov2-tiny", adapter)
    pictures = images(network)
    with torch.no_grad(), network.watching(NEEDS):
        earlier = network(pictures)
        teacher = Teacher(network)  # copied while the network is watched
        for part in (network.backbone, network.adapter, network.head) if adapter == "full" else (network.adapter,):
            for parameter in part.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))
        counts: list[int] = []
        with during(teacher.network, lambda: counts.append(hooks_of(teacher.network))):
            told = teacher(pictures)
        now = network(pictures)
    assert counts == [hooks_of(network) + 2 + 4]  # two blocks' maps, q and k of each: none is doubled
    assert hooks_of(teacher.network) == hooks_of(network)

    def everything(outputs: Outputs) -> list[Tensor]:
        kept = [outputs.logits, *outputs.maps, *outputs.attention, *(outputs.parts or ())]
        kept += [each for each in (outputs.features, outputs.grid_logits, outputs.saliency) if each is not None]
        assert len(kept) == 1 + 3 + 2 + 2 + 3
        return kept

    for before, said, after in zip(everything(earlier), everything(told), everything(now), strict=True):
        assert torch.equal(said, before)
        assert not torch.allclose(after, before)
    assert teacher(pictures).maps == ()


def test_one_forward_serves_both_where_the_backbone_stays() -> None:
    network = network_on("random:dinov2-tiny")
    pictures = images(network)
    teacher = Teacher(network)
    with torch.no_grad():
        network.head.decoder.weight += 0.1
    batch = MaskBatch(pictures, torch.zeros(2, 56, 42, dtype=torch.uint8), torch.arange(2))
    feed = MaskFeed.__new__(MaskFeed)
    forwards: list[int] = []
    with network.watching({"maps", "attention", "saliency"}), during(network, lambda: forwards.append(1)):
        feed.stays = False
        apart = feed.forward(network, teacher, batch)
        feed.stays = True
        outputs, told = feed.forward(network, teacher, batch)
    assert len(forwards) == 3
    assert told is not None
    for ours, theirs in ((outputs, apart[0]), (told, apart[1])):
        for one, other in zip((*ours.maps, *ours.attention), (*theirs.maps, *theirs.attention), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    assert all(one is other for one, other in zip(outputs.maps[:-1], told.maps[:-1], strict=True))
    assert not torch.allclose(outputs.maps[-1], told.maps[-1])
    assert [maps.requires_grad for maps in outputs.maps] == [False, False, True]


def test_maps_that_come_with_pictures_stand_for_attention() -> None:
    saliency = torch.arange(56 * 42).reshape(1, 56, 42).remainder(256).to(torch.uint8).expand(2, -1, -1)
    feed = MaskFeed.__new__(MaskFeed)
    for name, needs in (("random:dinov2-tiny", {"maps", "saliency"}), ("random:resnet-tiny", {"saliency"})):
        network = network_on(name, "none")
        batch = MaskBatch(images(network), torch.zeros(2, 56, 42, dtype=torch.uint8), torch.arange(2))
        for feed.stays in (False, True):
            with network.watching(needs):
                outputs, told = feed.forward(network, Teacher(network), batch._replace(saliency=saliency))
                assert told is not None
                assert told.saliency is None  # it costs nothing either
                assert network.watched == needs
            assert outputs.saliency is not None
            assert torch.equal(outputs.saliency, saliency.float())
            assert bool(outputs.maps) == ("maps" in needs)
            outputs, _ = feed.forward(network, None, batch._replace(saliency=saliency))
            assert outputs.saliency is None


def test_a_backbone_without_attention_says_what_to_do() -> None:
    network = network_on("random:resnet-tiny", "none")
    with network.watching({"attention", "saliency"}), pytest.raises(ConfigError) as refused:
        network(images(network))
    assert str(refused.value) == (
        "random:resnet-tiny shows no attention maps, and the objective needs them; take a vision transformer"
    )
    with network.watching({"saliency"}), pytest.raises(ConfigError, match="or give a map for each picture"):
        network(images(network))
    assert hooks_of(network) == hooks_of(copy.deepcopy(network.backbone))


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_low_precision_gives_float32(adapter: str) -> None:
    for name in ("random:dinov2-tiny", "random:sam-tiny"):
        network = network_on(name, adapter)
        with torch.no_grad():
            for parameter in network.backbone.parameters():
                parameter *= 0.2
            with network.watching(NEEDS):
                exact = network(images(network))
                network.set_precision("bf16")
                rough = network(images(network))
        for seen, wanted in zip(
            (*rough.maps, *rough.attention, rough.saliency),
            (*exact.maps, *exact.attention, exact.saliency),
            strict=True,
        ):
            assert seen is not None
            assert wanted is not None
            assert seen.dtype == torch.float32
            scale = math.sqrt(float(wanted.square().mean()))
            assert 0 < (seen - wanted).abs().mean() < 0.1 * scale


def test_a_prepared_network_is_watched_too() -> None:
    from accelerate import Accelerator

    network = network_on("random:dinov2-tiny")
    accelerator = Accelerator(mixed_precision="no", device_placement=False)
    optimizer = torch.optim.SGD(network.trainable().values(), lr=0.1)
    with network.watching({"maps", "attention"}):
        model, optimizer = accelerator.prepare(network, optimizer)
        outputs = model(images(network))
        accelerator.backward(outputs.attention[0][..., 0].mean() + outputs.maps[1].mean())
        optimizer.step()
        assert len(model(images(network)).maps) == 3
    assert model(images(network)).maps == ()
