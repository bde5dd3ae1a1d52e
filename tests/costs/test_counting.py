"""Counts on the meta device: the paper's figures, and small networks whose operations are added up by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sapwood.adapters.base import Adapter
from sapwood.adapters.full import FullConfig, FullFinetuning
from sapwood.adapters.lora import Lora, LoraConfig
from sapwood.adapters.none import NoAdapter, NoneConfig
from sapwood.backbones import create_backbone, plan_backbone
from sapwood.costs import Cost, clora_cost, network_cost
from sapwood.errors import ConfigError, NotMergeable
from sapwood.heads.base import Features, Head
from sapwood.heads.dense import DenseConfig, DenseHead
from sapwood.heads.linear import LinearConfig, LinearHead
from sapwood.heads.prototype import PrototypeConfig, PrototypeHead
from sapwood.heads.ridge import RidgeConfig, RidgeHead
from sapwood.network import Network

WIDTH, DEPTH, PATCH = 32, 2, 14  # of random:dinov2-tiny


@pytest.fixture(scope="module")
def paper() -> Cost:
    return clora_cost("sam-vit-large", 512, rank=32, classes=21)


def test_the_papers_parameters_to_the_last_digit(paper: Cost) -> None:
    assert paper.parameters == 305_170_965
    assert paper.network == {"backbone": 305_099_776, "decoder": 256 * 256 + 256, "classifiers": 21 * 257}
    assert paper.fitted == {"adapter": 24 * 2 * 2 * 1024 * 32, "decoder": 65_792, "classifiers": 5_397}
    assert [round(count / 1e6, 3) for count in paper.fitted.values()] == [3.146, 0.066, 0.005]
    assert paper.bytes_per_task == 4 * paper.trainable_parameters


def test_the_papers_operations_to_the_last_digit(paper: Cost) -> None:
    assert paper.gmacs_merged is not None
    assert (round(paper.gmacs_merged, 3), round(paper.gmacs, 3)) == (397.095, 402.256)
    # 20 blocks see windows of 14 x 14 over 32 x 32 patches padded to 42 x 42, 4 blocks see all patches.
    tokens = 20 * 42 * 42 + 4 * 32 * 32
    assert round((paper.gmacs - paper.gmacs_merged) * 1e9) == 2 * 2 * 1024 * 32 * tokens


def by_hand(tokens: int) -> int:
    """Multiply-accumulates of the tiny DINOv2: projections and attention of its blocks, and the first convolution."""
    block = 4 * tokens * WIDTH**2 + 2 * tokens**2 * WIDTH + 2 * tokens * 4 * WIDTH**2
    return DEPTH * block + (tokens - 1) * 3 * PATCH**2 * WIDTH


@pytest.mark.parametrize(("height", "width"), [(28, 28), (42, 28)])
def test_a_small_network_by_hand(height: int, width: int) -> None:
    cost = clora_cost("random:dinov2-tiny", (height, width), rank=3, classes=5)
    patches = (height // PATCH) * (width // PATCH)
    head = patches * (WIDTH * WIDTH + WIDTH * 5)
    assert cost.gmacs_merged is not None
    assert round(cost.gmacs_merged * 1e9) == by_hand(patches + 1) + head
    assert round((cost.gmacs - cost.gmacs_merged) * 1e9) == DEPTH * 2 * 2 * WIDTH * 3 * (patches + 1)
    assert cost.fitted == {"adapter": DEPTH * 2 * 2 * WIDTH * 3, "decoder": WIDTH * (WIDTH + 1), "classifiers": 5 * 33}
    assert cost.size == (height, width)


def test_the_way_to_compute_attention_does_not_change_the_count() -> None:
    counts = []
    for attention in ("eager", "sdpa"):
        planned = plan_backbone("random:dinov2-tiny", 28)
        planned.set_attention(attention)  # type: ignore[arg-type]
        counts.append(network_cost(network(planned, NoAdapter, NoneConfig(), grown(DenseHead(DenseConfig(), 32))), 0))
    assert counts[0] == counts[1]


def network(backbone: Any, adapter: type[Adapter], config: Any, head: Head) -> Network:
    return Network(backbone, adapter(config, backbone.sites, backbone.info), head)


def grown(head: Head) -> Head:
    head.grow(4, torch.Generator().manual_seed(0))
    if head.fitted == "statistics":
        x = torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(1))
        head.fit(Features(x, torch.arange(12) % 4), None, torch.Generator().manual_seed(2))
    return head


ROWS = 4 * (WIDTH + 1)


@pytest.mark.parametrize(
    ("head", "predicts"),
    [
        (lambda: LinearHead(LinearConfig(), WIDTH), {"decoder": 0, "classifiers": ROWS}),
        (lambda: DenseHead(DenseConfig(decoder="none"), WIDTH), {"decoder": 0, "classifiers": ROWS}),
        (lambda: PrototypeHead(PrototypeConfig(), WIDTH), {"classifiers": 4 * WIDTH}),
        (lambda: RidgeHead(RidgeConfig(), WIDTH), {"classifiers": 4 * WIDTH}),
        (lambda: RidgeHead(RidgeConfig(projection=50), WIDTH), {"classifiers": 4 * 50}),
    ],
    ids=["linear", "dense", "prototype", "ridge", "ridge behind a projection"],
)
def test_what_heads_count(head: Any, predicts: dict[str, int]) -> None:
    """Fitted without an adapter: what predictions use. A classifier that no one trains does not count."""
    backbone = create_backbone("random:dinov2-tiny", 28)
    own = sum(parameter.numel() for parameter in backbone.parameters())
    cost = network_cost(network(backbone, NoAdapter, NoneConfig(), grown(head())), 17)
    assert cost.network == {"backbone": own, **predicts}
    assert cost.fitted == {"adapter": 0, **predicts}
    assert cost.gmacs == cost.gmacs_merged
    assert cost.bytes_per_task == 17
    one = network_cost(network(plan_backbone("random:dinov2-tiny", 28), Lora, LoraConfig(rank=1), grown(head())), 0)
    trained = one.fitted.pop("classifier for training", 0)  # type: ignore[attr-defined]
    assert trained == (0 if head().fitted == "gradient" else ROWS)
    assert one.fitted == {"adapter": DEPTH * 2 * 2 * WIDTH, **predicts}


def test_full_fine_tuning_fits_the_backbone() -> None:
    planned = plan_backbone("random:dinov2-tiny", 28)
    cost = network_cost(network(planned, FullFinetuning, FullConfig(), grown(LinearHead(LinearConfig(), WIDTH))), 0)
    assert cost.fitted == cost.network
    assert cost.trainable_parameters == cost.parameters


class Gated(Lora):
    """A change that depends on the picture."""

    def dense(self, site: Any) -> Tensor:
        raise NotMergeable("the gate is a function of the picture")


def test_what_cannot_be_merged_has_no_merged_count() -> None:
    planned = plan_backbone("random:vit-tiny", 32)
    cost = network_cost(network(planned, Gated, LoraConfig(rank=2), grown(DenseHead(DenseConfig(), WIDTH))), 0)
    assert cost.gmacs_merged is None
    assert cost.gmacs == clora_cost("random:vit-tiny", 32, rank=2, classes=4).gmacs


@pytest.mark.parametrize("name", ["random:mit-tiny", "random:sam-tiny", "random:clip-tiny"])
def test_other_families(name: str) -> None:
    """The un-merged surplus is that of the factors, whatever the shapes of the projections."""
    cost = clora_cost(name, 96, rank=2, classes=3)
    planned = plan_backbone(name, 96)
    sites = [site for site in planned.sites if site.part in ("q", "v")]
    assert cost.fitted["adapter"] == sum(2 * (site.inputs + site.outputs) for site in sites)
    tokens: dict[str, int] = {}

    def keep(path: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor], _output: Tensor) -> None:
            tokens[path] = args[0].numel() // args[0].shape[-1]

        return hook

    for site in sites:
        planned.get_submodule(site.module).register_forward_hook(keep(site.module))
    planned(torch.empty(1, 3, 96, 96, device="meta"))
    assert cost.gmacs_merged is not None
    assert round((cost.gmacs - cost.gmacs_merged) * 1e9) == sum(
        2 * (site.inputs + site.outputs) * tokens[site.module] for site in sites
    )


def test_convolutions() -> None:
    """Of every 3x3: 9 r products a channel and cell of its output into the rank, then r a channel out of it."""
    cost = clora_cost("random:resnet-tiny", (64, 96), rank=2, classes=3, decoder="none")
    sites = [site for site in plan_backbone("random:resnet-tiny").sites if site.part == "conv2"]
    assert len(sites) == 6
    assert cost.fitted["adapter"] == sum(2 * (9 * site.inputs + site.outputs) for site in sites)
    assert cost.network["decoder"] == 0
    cells = {stage: 64 * 96 // stride**2 for stage, stride in enumerate((4, 8, 16, 16))}
    assert cost.gmacs_merged is not None
    assert round((cost.gmacs - cost.gmacs_merged) * 1e9) == sum(
        2 * (9 * site.inputs + site.outputs) * cells[int(site.name.split(".")[1])] for site in sites
    )


@pytest.mark.parametrize(
    ("options", "says"), [({"rank": 0}, "adapter.rank must be >= 1, got 0"), ({"classes": 0}, "classes must be >= 1")]
)
def test_numbers_that_cannot_be(options: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        clora_cost("random:vit-tiny", 32, **options)  # type: ignore[arg-type]
