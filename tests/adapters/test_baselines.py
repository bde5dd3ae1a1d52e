"""The two ends: nothing changes, and everything does."""

from __future__ import annotations

import torch

from sapwood.adapters import ADAPTERS
from sapwood.adapters.base import Context
from sapwood.assembly import write_parts
from sapwood.backbones import create_backbone
from sapwood.costs import stored_bytes
from sapwood.heads import HEADS
from sapwood.network import Network
from sapwood.objectives import OBJECTIVES


def network_with(name: str) -> Network:
    backbone = create_backbone("random:dinov2-tiny", 28)
    adapter = ADAPTERS[name](ADAPTERS[name].Config(), backbone.sites, backbone.info)
    head = HEADS["linear"](HEADS["linear"].Config(), backbone.info.dim)
    head.grow(2, torch.Generator().manual_seed(0))
    head.classifier.draw_idle(torch.Generator().manual_seed(0))
    return Network(backbone, adapter, head)


def test_none_leaves_the_backbone_untouched() -> None:
    network = network_with("none")
    assert network.adapted == []  # not one layer is wrapped: it costs nothing
    assert not network.adapter.moves
    assert set(network.trainable()) == {"head.classifier.weight", "head.classifier.bias"}
    assert network.adapter(network.backbone.sites[0], torch.zeros(1, 32), Context()) is None


def test_full_trains_every_weight_and_says_what_it_stores() -> None:
    network = network_with("full")
    assert network.adapted == []
    backbone = sum(parameter.numel() for parameter in network.backbone.parameters())
    head = sum(parameter.numel() for parameter in network.head.parameters())
    assert sum(parameter.numel() for parameter in network.trainable().values()) == backbone + head
    objective = OBJECTIVES["finetune"](OBJECTIVES["finetune"].Config())
    files, said = write_parts(network, objective, adapted=True)
    assert set(files) == {"backbone.safetensors", "head.safetensors"}
    width, classes = 32, network.head.classes
    known = 8 * (width * (width + 1) // 2 + (width + 1) * classes)  # what tells unknown pictures: sums in float64
    assert stored_bytes(files) == 4 * (backbone + head) + known
    assert said["adapter"] == {"stored": False, "meta": {}}
    # Stored under the backbone's own names, without a trace of wrapping.
    assert files["backbone.safetensors"].keys() == create_backbone("random:dinov2-tiny", 28).state_dict().keys()


def test_training_only_the_head_leaves_the_rest_out() -> None:
    for name in ADAPTERS:
        network = network_with(name)
        assert set(network.trainable(adapt=False)) == {"head.classifier.weight", "head.classifier.bias"}
        assert network.persistent(adapt=False).keys() == network.trainable(adapt=False).keys()
        lasting = {f"adapter.{key}" for key, _ in network.adapter.persistent_parameters()}
        trainable = network.trainable()
        rest = {key for key in trainable if not key.startswith("adapter.")}
        assert network.persistent().keys() == rest | (lasting & trainable.keys())
