"""LoRA with both factors drawn, on a tiny backbone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sapwood.adapters import Adapter
from sapwood.adapters.lora import Lora, LoraConfig
from sapwood.backbones.base import Backbone
from sapwood.heads import HEADS
from sapwood.network import Network
from sapwood.task import Task

TINY, SIZE = "random:dinov2-tiny", 28


FIRST = Task(0, "first", (0, 1), (0, 1), 2, seed=5)


def lora(backbone: Backbone, **settings: Any) -> Lora:
    """An adapter that changes something."""
    return drawn(Lora(LoraConfig(**settings), backbone.sites, backbone.info))


def drawn(adapter: Lora) -> Lora:
    """Both factors random, so that the adapter changes something."""
    adapter.before_task(FIRST, None)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for factor in adapter.up.values():
            factor.normal_(0, 0.3, generator=generator)
    return adapter


def network_of(adapter: Adapter, backbone: Backbone) -> Network:
    return Network(backbone, adapter, HEADS["linear"](HEADS["linear"].Config(), backbone.info.dim))


def pictures(count: int = 3) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))


def close(one: Tensor, two: Tensor) -> None:
    torch.testing.assert_close(one, two, atol=1e-6, rtol=0)
