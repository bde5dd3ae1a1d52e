"""A tiny network whose adapter begins in a later block."""

from __future__ import annotations

from sapwood.adapters import ADAPTERS
from sapwood.backbones import create_backbone
from sapwood.heads import HEADS
from sapwood.network import Network

SIDE = 28


def network(blocks: str = "-1", adapter: str = "lora", backbone: str = "random:dinov2-tiny") -> Network:
    made = create_backbone(backbone, SIDE if "dinov2" in backbone else None)
    config = ADAPTERS[adapter].Config
    settings = {"blocks": blocks} if "blocks" in config.__dataclass_fields__ else {}
    parts = ADAPTERS[adapter](config(**settings), made.sites, made.info)
    return Network(made, parts, HEADS["linear"](HEADS["linear"].Config(), made.info.dim))
