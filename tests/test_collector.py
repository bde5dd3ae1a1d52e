"""What the collector says of a round's pictures, against a loop of our own over the layers' inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sapwood.adapters.base import Vectors
from sapwood.adapters.lora import Lora, LoraConfig
from sapwood.backbones import create_backbone
from sapwood.collector import Collector
from sapwood.data.loader import Views
from sapwood.data.sources import list_pictures
from sapwood.data.store import PictureStore
from sapwood.feeds import PictureFeed
from sapwood.heads import HEADS
from sapwood.network import Network
from sapwood.progress import Progress
from sapwood.task import Task

SIZE, COUNT, BATCH = 28, 7, 3  # the last batch is smaller
TARGETS = ("q", "k", "fc2")


@pytest.fixture
def network() -> Network:
    """One whose adapter changes what the layers see."""
    backbone = create_backbone("random:dinov2-tiny", SIZE)
    adapter = Lora(LoraConfig(rank=2, targets=TARGETS), backbone.sites, backbone.info)
    adapter.before_task(Task(0, "first", (0, 1), (0, 1), 2, seed=5), None)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for factor in adapter.up.values():
            factor.normal_(0, 0.3, generator=generator)
    return Network(backbone, adapter, HEADS["linear"](HEADS["linear"].Config(), backbone.info.dim))


@pytest.fixture
def feed(picture_folder: Callable[..., Path]) -> PictureFeed:
    store = PictureStore(list_pictures([picture_folder({"ant": 4, "bee": 3})]), SIZE)
    return PictureFeed(store, torch.zeros(COUNT, dtype=torch.int64), Views(SIZE, augment=False), BATCH, 0)


def inputs(network: Network, feed: PictureFeed) -> dict[str, Tensor]:
    """The input [n, N, in] of each adapted projection's layer, by its own module, picture by picture, in float64."""
    seen: dict[str, list[Tensor]] = {}
    images = torch.cat([batch.images for batch in feed.batches(0, 0)])
    handles = []
    for site in network.adapter.sites:
        module = network.backbone.get_submodule(site.module)

        def keep(module: nn.Module, given: tuple[Tensor], name: str = site.name) -> None:
            seen.setdefault(name, []).append(given[0].detach().double())

        handles.append(module.register_forward_pre_hook(keep))
    with torch.no_grad():
        for image in images:
            network.tokens(image[None])
    for handle in handles:
        handle.remove()
    return {name: torch.cat(found) for name, found in seen.items()}


def hooks(network: Network) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in network.modules())


@pytest.mark.parametrize("tokens", ["all", "class", "mean"])
def test_second_moments_are_means_over_every_token_or_one_a_picture(network, feed, tokens) -> None:
    moments, shares = Collector(network, feed, COUNT).second_moments(Vectors(tokens), Vectors(tokens, unit=True))
    seen = inputs(network, feed)
    keys = {site.name: site.input_key for site in network.adapter.sites}
    assert moments.keys() == set(keys.values())
    assert len(moments) == 4  # q and k of a block share theirs
    for name, x in seen.items():
        rows = {"all": x.flatten(0, 1), "class": x[:, 0], "mean": x[:, 1:].mean(1)}[tokens]
        expected = torch.zeros(2, x.shape[2], x.shape[2], dtype=torch.float64)
        for row in rows:
            square = torch.outer(row, row)
            expected += torch.stack([square, square / square.trace()]) / len(rows)
        for found, wanted in zip((moments[keys[name]], shares[keys[name]]), expected, strict=True):
            assert found.dtype == (torch.float32 if tokens == "all" else torch.float64)
            assert not found.requires_grad
            torch.testing.assert_close(found.double(), wanted, atol=1e-5 * wanted.abs().max().item(), rtol=0)


def test_it_looks_at_the_network_as_it_is(network, feed) -> None:
    collector = Collector(network, feed, COUNT)
    (before,) = collector.second_moments(Vectors())
    with network.bare():
        (bare,) = collector.second_moments(Vectors())
    assert torch.equal(before["block.0.attn"], bare["block.0.attn"])  # nothing has changed before the first block
    assert not torch.allclose(before["block.1.attn"], bare["block.1.attn"])
    (again,) = collector.second_moments(Vectors())
    assert torch.equal(again["block.1.attn"], before["block.1.attn"])


def test_what_is_asked_at_once_is_what_is_asked_alone(network, feed) -> None:
    collector = Collector(network, feed, COUNT)
    wanted = Vectors("all"), Vectors("class"), Vectors("mean", unit=True), Vectors("class", unit=True)
    for vectors, found in zip(wanted, collector.second_moments(*wanted), strict=True):
        (alone,) = collector.second_moments(vectors)
        assert found.keys() == alone.keys()
        assert all(torch.equal(found[key], alone[key]) for key in alone)


def test_a_vector_of_nothing_has_no_direction() -> None:
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    assert Vectors("class", unit=True).of(rows).tolist() == [[0.0, 0.0], [0.6, 0.8]]


def test_every_layer_is_visited_once_a_batch_and_nothing_stays_behind(network, feed) -> None:
    before, calls = hooks(network), []
    collector = Collector(network, feed, COUNT)
    collector.visit(lambda key, x: calls.append((key, tuple(x.shape), x.requires_grad, hooks(network))))
    assert [call[1][0] for call in calls if call[0] == "block.1.attn"] == [3, 3, 1]
    assert {call[:2] for call in calls if call[1][0] == 1} == {
        *((f"block.{block}.attn", (1, 5, 32)) for block in range(2)),
        *((f"block.{block}.fc2", (1, 5, 128)) for block in range(2)),
    }
    assert not any(call[2] for call in calls)
    assert all(call[3] == before + 4 for call in calls)
    assert hooks(network) == before

    def fail(key: str, x: Tensor) -> None:
        raise RuntimeError(key)

    with pytest.raises(RuntimeError, match=r"block\.0"):
        collector.visit(fail)
    assert hooks(network) == before


def test_pixels_are_what_plans_get(network, feed, monkeypatch) -> None:
    planned: list[Tensor] = []
    plan = network.adapter.plan
    monkeypatch.setattr(
        network.adapter, "plan", lambda pixels, network: planned.append(pixels) or plan(pixels, network)
    )
    Collector(network, feed, COUNT).second_moments(Vectors())
    given = list(Collector(network, feed, COUNT).pixels())
    assert [tuple(pixels.shape) for pixels in given] == [(3, 3, SIZE, SIZE), (3, 3, SIZE, SIZE), (1, 3, SIZE, SIZE)]
    assert all(torch.equal(one, two) for one, two in zip(given, planned, strict=True))


class Listener(Progress):
    def __init__(self) -> None:
        self.said: list[tuple[str, int]] = []

    def start(self, what: str, total: int, done: int = 0) -> None:
        self.said.append((what, total))

    def advance(self, units: int, **facts: float) -> None:
        self.said.append(("advance", units))

    def finish(self) -> None:
        self.said.append(("finish", 0))


def test_a_stop_ends_it_between_batches(network, feed) -> None:
    listener, before, looked = Listener(), hooks(network), []

    class Stopped(Exception):
        pass

    def check() -> None:
        if ("advance", BATCH) in listener.said:
            raise Stopped

    collector = Collector(network, feed, COUNT, listener, check)
    with pytest.raises(Stopped):
        collector.visit(lambda key, x: looked.append(key))
    assert looked.count("block.0.attn") == 1
    assert hooks(network) == before
    assert listener.said == [("looking at layers", COUNT), ("advance", BATCH)]


def test_it_tells_how_far_it_is(network, feed) -> None:
    listener = Listener()
    Collector(network, feed, COUNT, listener).second_moments(Vectors("class"))
    assert listener.said == [("looking at layers", COUNT), *(("advance", n) for n in (3, 3, 1)), ("finish", 0)]
