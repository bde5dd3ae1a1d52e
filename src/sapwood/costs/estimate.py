"""Time and memory of a round, measured before it begins."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sapwood.backbones.base import height_width
from sapwood.backbones.split import Split
from sapwood.kinds import Round
from sapwood.network import Network
from sapwood.prefixes import blocks_below, kept_views
from sapwood.settings import TrainingConfig

# A step differentiates with respect to inputs as well: about one more forward, and a little for the factors.
_STEP_OVER_FORWARD = 2.2
_FULL_STEP_OVER_FORWARD = 3.2


@dataclass(frozen=True)
class Estimate:
    """A guess made before a round, from one forward on this machine.

    Attributes:
        seconds: of training and of the passes over pictures.
        memory: bytes of weights, gradients, optimiser and kept activations of one step.
    """

    seconds: float
    memory: int

    def __str__(self) -> str:
        minutes = f"{self.seconds / 60:.1f} min" if self.seconds >= 90 else f"{self.seconds:.0f} s"
        return f"about {minutes} and {max(self.memory / 2**30, 0.1):.1f} GiB beside what the program itself takes"


def estimate_round(network: Network, config: TrainingConfig, data: Round) -> Estimate:
    """Time and memory of a round, measured on a small batch of blank pictures before it begins.

    Of hidden states that are kept (``cache_prefix``) none is taken to be on disk yet.
    """
    trains = network.adapter.moves and not (config.adapt == "first" and data.task.index > 0)
    pictures = len(data)
    count = min(8, config.batch_size)
    height, width = height_width(data.size)
    blank = torch.zeros(count, height, width, 3, dtype=torch.uint8)
    with torch.no_grad():
        frozen, rest = (seconds / count for seconds in _forward_seconds(network, blank))
    full = network.adapter.trains_backbone
    weights = sum(_bytes(tensor) for tensor in network.parameters())
    if not trains:
        return Estimate((frozen + rest) * pictures, weights)
    per_step = _FULL_STEP_OVER_FORWARD if full else _STEP_OVER_FORWARD
    passes = 1 if network.head.wants_features else 0
    views = pictures * config.epochs
    # What is held out has one view.
    looked_at = len(data.train) * kept_views(config) + len(data.held) if config.cache_prefix else views
    trained = sum(_bytes(parameter) for parameter in network.trainable().values())
    return Estimate(
        frozen * looked_at + per_step * rest * views + (frozen + rest) * pictures * passes,
        weights + 3 * trained + _kept_activations(network, blank[:1]) * config.batch_size,
    )


def _forward_seconds(network: Network, images: Tensor) -> tuple[float, float]:
    """Seconds of the blocks below the first adapted one, and of the rest of a forward."""
    network.tokens(images[:1])  # what the first one sets up
    backbone, blocks = network.backbone, blocks_below(network)
    began = between = _now(network)
    if isinstance(backbone, Split) and blocks:
        grid = (images.shape[1] // backbone.info.patch, images.shape[2] // backbone.info.patch)
        hidden = backbone.prefix(network.pixels(images), blocks)
        between = _now(network)
        network.resume(hidden, blocks, grid)
    else:
        network.tokens(images)
    return between - began, _now(network) - between


def _now(network: Network) -> float:
    if network.device.type == "cuda":
        torch.cuda.synchronize(network.device)
    return time.perf_counter()


def _kept_activations(network: Network, picture: Tensor) -> int:
    """Bytes that autograd keeps for the backward of one picture, weights aside."""
    own = {parameter.data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = _bytes(tensor)
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs: Any = network.tokens(picture)[0].pooled.sum()
    del outputs
    return sum(kept.values())


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
