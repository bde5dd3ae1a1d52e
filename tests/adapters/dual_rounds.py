"""Rounds of DualLoRA on a real tiny network, without an optimiser."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sapwood.adapted import AdaptedLinear
from sapwood.adapters.dual import Dual
from sapwood.adapters.dual_config import DualConfig
from sapwood.backbones import create_backbone
from sapwood.backbones.base import Site
from sapwood.collector import Collector
from sapwood.heads import HEADS
from sapwood.network import Network
from sapwood.task import Task

TINY, SIZE = "random:dinov2-tiny", 28


ALMOST_ALL = 0.9995  # class tokens of random weights differ by little: less is held by one direction


BASES = pytest.mark.parametrize("basis", ["previous", "current"])


def network_of(backbone: str = TINY, size: int = SIZE, **settings: Any) -> Network:
    made = create_backbone(backbone, size)
    adapter = Dual(DualConfig(**{"rank": 3, **settings}), made.sites, made.info)
    return Network(made, adapter, HEADS["linear"](HEADS["linear"].Config(), made.info.dim))


def images(seed: int, count: int = 10, size: int = SIZE) -> Tensor:
    """Noise around a colour of the seed's own."""
    rng = torch.Generator().manual_seed(seed)
    colour = torch.randint(40, 216, (1, 1, 1, 3), generator=rng)
    return (colour + torch.randint(-40, 40, (count, size, size, 3), generator=rng)).to(torch.uint8)


def statistics(network: Network, batch: Tensor) -> Collector:
    batches = [SimpleNamespace(images=part, targets=torch.zeros(len(part))) for part in batch.split(4)]
    feed = SimpleNamespace(batches=lambda epoch, start, part: batches, batch_size=4, count=len(batch))
    return Collector(network, feed, len(batch))


def task(index: int) -> Task:
    return Task(index, f"round {index}", (index,), (index,), index + 1, seed=3)


def disturb(adapter: Dual, seed: int) -> dict[str, Tensor]:
    """What an optimiser might do: every trainable factor moves anywhere; then the step is over."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for factor in adapter.parameters():
            if factor.requires_grad:
                factor += 0.2 * torch.randn(factor.shape, generator=rng)
    adapter.after_step()
    return {name: factor.detach().clone() for name, factor in adapter.named_parameters()}


def learn(network: Network, index: int, batch: Tensor | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One round without an optimiser: the factors it ended with, and its class tokens at every layer, float64."""
    adapter = network.adapter
    seen = statistics(network, images(index) if batch is None else batch)
    adapter.before_task(task(index), seen)
    factors = disturb(adapter, seed=100 + index)
    z = class_tokens(seen)
    adapter.after_task(task(index), seen)
    network.refold()
    return factors, z


def class_tokens(seen: Collector) -> dict[str, Tensor]:
    rows: dict[str, list[Tensor]] = {}
    seen.visit(lambda key, x: rows.setdefault(key, []).append(x[:, 0].double()))
    return {key: torch.cat(parts) for key, parts in rows.items()}


def layer_at(network: Network, name: str) -> tuple[AdaptedLinear, Site]:
    (layer,) = (layer for layer in network.adapted if layer.sites[0].name == name)
    return layer, layer.sites[0]


def key_of(site: Site) -> str:
    return "layer_" + site.input_key.replace(".", "_")


def outside(z: Tensor, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Singular values and right vectors of rows without what is held."""
    _, sizes, right = np.linalg.svd(z.numpy() - z.numpy() @ held @ held.T)
    return sizes, right
