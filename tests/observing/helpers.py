"""Tiny networks whose every number counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sapwood.adapters import ADAPTERS
from sapwood.backbones import create_backbone
from sapwood.backbones.base import Backbone
from sapwood.backbones.timm import TimmBackbone
from sapwood.heads.dense import DenseConfig, DenseHead
from sapwood.network import Network
from sapwood.task import Task

try:
    import timm
except Exception:  # missing, or a torchvision that does not fit torch
    timm = None

TINY = {
    "random:dinov2-tiny": (56, 42),
    "random:dinov2-reg-tiny": (56, 42),
    "random:vit-tiny": (64, 48),
    "random:deit-tiny": (64, 48),
    "random:clip-tiny": (64, 48),
    "random:siglip-tiny": (64, 48),
    "random:sam-tiny": (64, 64),
    "random:mit-tiny": (128, 64),
}
TIMM = ("timm", "timm with normalised queries and keys")
FAMILIES = [*TINY, *(pytest.param(name, marks=pytest.mark.skipif(timm is None, reason="no timm")) for name in TIMM)]
TASK = Task(0, "first", (1, 2), (1, 2), 3, seed=0)


def backbone_named(name: str) -> Backbone:
    if name in TIMM:
        options: dict[str, Any] = {"qk_norm": True} if "normalised" in name else {}
        model = timm.create_model(
            "test_vit.r160_in1k", pretrained=False, num_classes=0, dynamic_img_size=True, **options
        )
        return TimmBackbone(model, name=name, revision="none")
    return create_backbone(name, TINY.get(name, (64, 64)))


def network_on(name: str, adapter_name: str = "lora", **head: Any) -> Network:
    """A network whose every number counts: with zero positions, biases or adapters faults would not show."""
    generator = torch.Generator().manual_seed(7)
    backbone = backbone_named(name)
    for parameter in backbone.parameters():
        parameter.data.normal_(std=0.3, generator=generator)
    kind = ADAPTERS[adapter_name]
    everywhere = {"targets": ("q", "k", "v")} if adapter_name == "lora" and "resnet" not in name else {}
    adapter = kind(kind.Config(**everywhere), backbone.sites, backbone.info)
    adapter.before_task(TASK, None)
    grown = DenseHead(DenseConfig(**head), backbone.info.dim)
    grown.grow(3, generator)
    for part in (adapter, grown):
        for parameter in part.parameters():
            parameter.data.normal_(std=0.3, generator=generator)
    return Network(backbone, adapter, grown)


def images(network: Network, count: int = 2) -> Tensor:
    size = TINY.get(network.backbone.info.name, (64, 64))
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, *size, 3), dtype=torch.uint8, generator=generator)
