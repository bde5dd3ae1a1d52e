"""CoLoR's experts: which one a picture takes, what it then computes, and which classes it may name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sapwood.adapters.base import Context
from sapwood.adapters.experts import Experts, ExpertsConfig, cluster
from sapwood.backbones import create_backbone
from sapwood.backbones.base import Backbone
from sapwood.errors import ConfigError, NotMergeable
from sapwood.heads import HEADS
from sapwood.network import Network
from sapwood.task import Task

TINY, SIZE = "random:dinov2-tiny", 28


def task(index: int, *classes: int) -> Task:
    return Task(index, f"round {index}", classes, classes, max(classes) + 1, seed=5)


def network_of(name: str = TINY, size: int = SIZE, **settings: Any) -> tuple[Network, Experts]:
    backbone = create_backbone(name, size)
    adapter = Experts(ExpertsConfig(**{"rank": 2, "alpha": 6.0, **settings}), backbone.sites, backbone.info)
    return Network(backbone, adapter, HEADS["linear"](HEADS["linear"].Config(), backbone.info.dim)), adapter


def pictures(count: int, seed: int, size: int = SIZE) -> Tensor:
    """Normalised pictures that are alike, others for another seed."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(1, 3, size, size, generator=rng) + 0.3 * torch.randn(count, 3, size, size, generator=rng)


def teach(network: Network, index: int, classes: tuple[int, ...], images: Tensor) -> None:
    """A round whose expert is arbitrary, over given pictures."""
    adapter = network.adapter
    adapter.before_task(task(index, *classes), None)
    rng = torch.Generator().manual_seed(index)
    with torch.no_grad():
        for factor in adapter.up.values():
            factor.normal_(0, 0.5, generator=rng)
    adapter.after_task(task(index, *classes), SimpleNamespace(network=network, pixels=lambda: iter(images.split(4))))


def three_rounds(**settings: Any) -> tuple[Network, Experts]:
    network, adapter = network_of(**settings)
    for index, classes in enumerate([(0, 1), (2,), (1, 3)]):
        teach(network, index, classes, pictures(9, index, settings.get("size", SIZE)))
    return network, adapter


def unit(features: Tensor) -> np.ndarray:
    rows = features.double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@torch.no_grad()
def run(network: Network, images: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled features and the experts chosen."""
    network.slot.context = network.adapter.plan(images, network)
    pooled = network.backbone(images).pooled
    chosen = network.slot.context.values["expert"]
    network.slot.context = Context()
    return pooled, chosen


def test_a_picture_takes_the_expert_of_the_nearest_centre_of_its_frozen_features() -> None:
    network, adapter = three_rounds()
    bare = create_backbone(TINY, SIZE)
    mixed = torch.cat([pictures(6, seed) for seed in (2, 0, 1, 7)])
    with torch.no_grad():
        features = unit(bare(mixed).pooled)
    away = ((features[:, None] - adapter.centres.double().numpy()[None]) ** 2).sum(2)
    owners = np.repeat([0, 1, 2], 5)
    chosen = run(network, mixed)[1]
    assert chosen.tolist() == owners[away.argmin(1)].tolist()
    assert chosen[:18].tolist() == [2] * 6 + [0] * 6 + [1] * 6
    assert adapter.owners.tolist() == owners.tolist()


def test_centres_are_means_of_unit_features_and_stay_as_they_are() -> None:
    _, adapter = three_rounds(clusters=3)
    bare = create_backbone(TINY, SIZE)
    for index in range(3):
        centres = adapter.centres[adapter.owners == index].double().numpy()
        with torch.no_grad():
            features = unit(bare(pictures(9, index)).pooled)
        nearest = ((features[:, None] - centres[None]) ** 2).sum(2).argmin(1)
        means = np.stack([features[nearest == cluster].mean(0) for cluster in range(3)])
        assert np.allclose(centres, means, atol=1e-5)
        assert (np.linalg.norm(centres, axis=1) < 1 - 1e-6).any()  # a mean of unit vectors is shorter


def test_clusters_are_no_more_than_there_are_different_pictures() -> None:
    rows = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    assert sorted(cluster(rows, 5).tolist()) == [[0, 1], [1, 0]]
    assert cluster(rows[:1], 5).tolist() == [[0, 1]]
    far = torch.cat([torch.randn(20, 3) * 0.01 + shift for shift in (0.0, 5.0, 9.0)])
    expected = torch.stack([part.mean(0) for part in far.split(20)])
    found = cluster(far, 3)
    torch.testing.assert_close(found[found[:, 0].argsort()], expected, atol=1e-5, rtol=0)
    assert torch.equal(cluster(far, 4), cluster(far, 4))


@pytest.mark.parametrize("shape", [(4, 3), (4, 2, 5), (12, 2, 3), (4,)], ids=["tokens", "map", "windows", "vectors"])
def test_each_picture_is_multiplied_with_its_own_factors(shape: tuple[int, ...]) -> None:
    _, adapter = three_rounds()
    site = adapter.sites[0]
    factors = [
        (down.double(), up.double())
        for down, up in zip(
            [*adapter.past_down["block_0_q"], adapter.down["block_0_q"]],
            [*adapter.past_up["block_0_q"], adapter.up["block_0_q"]],
            strict=True,
        )
    ]
    assert len(factors) == 3
    chosen = torch.tensor([2, 0, 2, 1])
    x = torch.randn(*shape, site.inputs, generator=torch.Generator().manual_seed(4))
    found = adapter(site, x, Context({"expert": chosen}))
    assert found.shape == (*shape, site.outputs)
    each = shape[0] // 4
    for position, part in enumerate(x.double().split(each)):
        down, up = factors[chosen[position]]
        expected = 3.0 * part @ down.T @ up.T  # alpha / rank
        torch.testing.assert_close(found[position * each : (position + 1) * each].double(), expected, atol=1e-5, rtol=0)
    assert adapter(site, x.bfloat16(), Context({"expert": chosen})).dtype == torch.bfloat16


@pytest.mark.parametrize(("name", "size"), [(TINY, SIZE), ("random:sam-tiny", 80)])
def test_no_picture_depends_on_the_others(name: str, size: int) -> None:
    """Nor on its place; SAM's windows multiply the batch."""
    network, _ = three_rounds(name=name, size=size)
    mixed = torch.cat([pictures(2, seed, size) for seed in (1, 0, 2)])
    together, chosen = run(network, mixed)
    assert chosen.tolist() == [1, 1, 0, 0, 2, 2]
    for position in range(6):
        alone, expert = run(network, mixed[position : position + 1])
        assert expert == chosen[position]
        torch.testing.assert_close(alone[0], together[position], atol=1e-5, rtol=0)
    turned, _ = run(network, mixed.flip(0))
    torch.testing.assert_close(turned.flip(0), together, atol=1e-5, rtol=0)


def test_later_rounds_change_nothing_for_pictures_of_an_earlier_one() -> None:
    network, _ = network_of()
    teach(network, 0, (0, 1), pictures(9, 0))
    before, _ = run(network, pictures(9, 0))
    teach(network, 1, (2,), pictures(9, 1))
    after, chosen = run(network, pictures(9, 0))
    assert chosen.tolist() == [0] * 9
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)
    assert (run(network, pictures(9, 1))[0] - network_of()[0].backbone(pictures(9, 1)).pooled).abs().max() > 1e-2


class Counted:
    """How many pictures the backbone is given."""

    def __init__(self, backbone: Backbone) -> None:
        self.calls: list[int] = []
        backbone.register_forward_pre_hook(lambda module, given: self.calls.append(len(given[0])))


def test_pictures_are_identified_once_and_not_while_a_round_is_learned() -> None:
    network, adapter = network_of()
    counted = Counted(network.backbone)
    for index in range(3):
        adapter.before_task(task(index, index), None)
        counted.calls.clear()
        assert run(network, pictures(5, index))[1].tolist() == [index] * 5
        assert counted.calls == [5]
        statistics = SimpleNamespace(network=network, pixels=lambda index=index: iter(pictures(9, index).split(4)))
        adapter.after_task(task(index, index), statistics)
        assert counted.calls == [5, 4, 4, 1]
        counted.calls.clear()
        run(network, pictures(5, index))
        assert counted.calls == ([5] if index == 0 else [5, 5])  # one expert is no choice


def test_only_the_newest_expert_trains() -> None:
    network, adapter = three_rounds()
    adapter.before_task(task(3, 4), None)
    assert set(network.trainable()) >= {f"adapter.{part}.block_1_{site}" for part in ("down", "up") for site in "qv"}
    assert not any("past" in name for name in network.trainable())
    assert list(adapter.persistent_parameters()) == []
    assert not any("past" in name for name, _ in adapter.named_buffers())  # no checkpoint holds older experts
    past = {name: tensor.clone() for name, tensor in adapter.past_up.items()}
    plain = network_of()[0].backbone(pictures(2, 0)).pooled
    assert torch.equal(run(network, pictures(2, 0))[0], plain)  # B = 0: it starts from the bare backbone
    network.slot.context = adapter.plan(pictures(2, 0), network)
    network.backbone(pictures(2, 0)).pooled[:, 0].sum().backward()
    assert adapter.up["block_0_q"].grad.abs().max() > 0
    assert all(torch.equal(tensor, adapter.past_up[name]) for name, tensor in past.items())


def test_identification_may_use_the_first_expert() -> None:
    network, _ = network_of(identify="first")
    teach(network, 0, (0, 1), pictures(9, 0))
    features = [unit(run(network, pictures(9, seed))[0]) for seed in range(3)]  # one expert: no choice yet
    for index in (1, 2):
        teach(network, index, (index + 1,), pictures(9, index))
    adapter = network.adapter
    centres = adapter.centres.double().numpy()
    for index in range(3):
        own = centres[adapter.owners.numpy() == index]
        nearest = ((features[index][:, None] - own[None]) ** 2).sum(2).argmin(1)
        means = np.stack([features[index][nearest == cluster].mean(0) for cluster in range(5)])
        assert np.allclose(own, means, atol=1e-5)
        away = ((features[index][:, None] - centres[None]) ** 2).sum(2).argmin(1)
        assert run(network, pictures(9, index))[1].tolist() == adapter.owners[torch.from_numpy(away)].tolist()
    assert network.slot.context.values == {}
    assert not np.allclose(centres, three_rounds()[1].centres.double().numpy(), atol=1e-3)


def test_classes_of_other_experts_are_ruled_out() -> None:
    _, adapter = three_rounds()  # their classes: 0 1, 2, 1 3; nobody has 4
    logits = torch.arange(15.0).reshape(3, 5)
    found = adapter.calibrate(logits, Context({"expert": torch.tensor([1, 0, 2])}))
    inf = float("inf")
    assert found.tolist() == [[-inf, -inf, 2, -inf, 4], [5, 6, -inf, -inf, 9], [-inf, 11, -inf, 13, 14]]
    maps = torch.randn(3, 5, 2, 2)
    assert torch.equal(adapter.calibrate(maps, Context({"expert": torch.tensor([1, 0, 2])})), maps)
    assert torch.equal(adapter.calibrate(logits, Context()), logits)


def test_rounds_are_stored_one_by_one_and_put_together_again() -> None:
    network, adapter = network_of()
    empty, facts = adapter.state()
    assert facts == {}
    history = []
    for index, classes in enumerate([(0, 1), (2,), (1, 3)]):
        teach(network, index, classes, pictures(9, index))
        history.append(adapter.state())
    assert {name: tensor.shape for name, tensor in empty.items()} == {
        name: tensor.shape for name, tensor in history[1][0].items()
    }
    other, opened = network_of()
    opened.load(history)
    assert (
        opened.rounds
        == adapter.rounds
        == [
            {"classes": [0, 1]},
            {"classes": [2]},
            {"classes": [1, 3]},
        ]
    )
    one, two = adapter.state_dict(), opened.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(run(other, pictures(4, 1))[0], run(network, pictures(4, 1))[0])
    with pytest.raises(NotMergeable, match="no one weight"):
        network.merge()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, r"adapter\.rank must be >= 1, got 0"),
        ({"alpha": 0.0}, r"adapter\.alpha must be > 0, got 0\.0"),
        ({"clusters": 0}, r"adapter\.clusters must be >= 1, got 0"),
        ({"targets": ("gate",)}, r"adapter\.targets: no projection gate"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        network_of(**settings)
