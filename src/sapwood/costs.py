"""What learning costs: bytes declared, memory and time before a round begins."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sapwood.adapters import ADAPTERS
from sapwood.assembly import merge_settings
from sapwood.backbones.base import BackboneInfo, Site
from sapwood.heads import HEADS
from sapwood.methods import Method
from sapwood.network import Network
from sapwood.objectives import OBJECTIVES
from sapwood.rounds import Round
from sapwood.settings import TrainingConfig, build
from sapwood.task import Task

# A step differentiates with respect to inputs as well: about one more forward, and a little for the factors.
_STEP_OVER_FORWARD = 2.2
_FULL_STEP_OVER_FORWARD = 3.2
# DINOv2 ViT-S/14 with its table of 37 x 37 positions.
_WIDTH, _DEPTH, _PARAMETERS = 384, 12, 22_056_576


def stored_bytes(files: Mapping[str, Mapping[str, Tensor]]) -> int:
    """Bytes of the tensors in a round's files, without headers: what the method declares to keep."""
    return sum(tensor.numel() * tensor.element_size() for tensors in files.values() for tensor in tensors.values())


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
        return f"about {minutes} and {self.memory / 2**30:.1f} GiB"


def estimate_round(network: Network, config: TrainingConfig, data: Round, image_size: int) -> Estimate:
    """Time and memory of a round, measured on a small batch of blank pictures before it begins."""
    trains = network.adapter.moves and not (config.adapt == "first" and data.task.index > 0)
    pictures = len(data.train) + len(data.held)
    count = min(8, config.batch_size)
    blank = torch.zeros(count, image_size, image_size, 3, dtype=torch.uint8)
    with torch.no_grad():
        network.tokens(blank)
        began = time.perf_counter()
        network.tokens(blank)
        forward = (time.perf_counter() - began) / count
    full = network.adapter.trains_backbone
    weights = sum(_bytes(tensor) for tensor in network.parameters())
    if not trains:
        return Estimate(forward * pictures, weights)
    per_step = _FULL_STEP_OVER_FORWARD if full else _STEP_OVER_FORWARD
    passes = 1 if network.head.wants_features else 0
    trained = sum(_bytes(parameter) for parameter in network.trainable().values())
    return Estimate(
        forward * pictures * (per_step * config.epochs + passes),
        weights + 3 * trained + _kept_activations(network, blank[:1]) * config.batch_size,
    )


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


def declared_bytes(method: Method, classes: int) -> int:
    """Bytes that a first round of so many classes keeps on a ViT-S/14: what its parts give for the state, unfilled."""
    settings = merge_settings(method)
    info = BackboneInfo("", "dinov2", "", "", "", _WIDTH, 14, _DEPTH, 6, 1, 224, (0, 0, 0), (1, 1, 1))
    sites = [
        Site(f"block.{block}.{part}", "linear", inputs * _WIDTH, outputs * _WIDTH, "", "")
        for block in range(_DEPTH)
        for part, inputs, outputs in (("q", 1, 1), ("k", 1, 1), ("v", 1, 1), ("o", 1, 1), ("fc1", 1, 4), ("fc2", 4, 1))
    ]
    adapter_type, head_type, objective_type = ADAPTERS[method.adapter], HEADS[method.head], OBJECTIVES[method.objective]
    adapter = adapter_type(build(adapter_type.Config, settings["adapter"], "adapter"), sites, info)
    head = head_type(build(head_type.Config, settings["head"], "head"), _WIDTH)
    head.grow(classes, torch.Generator())
    objective = objective_type(build(objective_type.Config, settings["objective"], "objective"))
    trained = {f"adapter.{name}": parameter for name, parameter in adapter.named_parameters()}
    trained |= {f"head.{name}": parameter for name, parameter in head.named_parameters()}

    def forward(batch: Any) -> torch.Tensor:
        touched = torch.stack([parameter.sum() for parameter in trained.values()]).sum()
        return touched * torch.ones(1, classes)

    every = tuple(range(classes))
    picture = SimpleNamespace(targets=torch.zeros(1, dtype=torch.int64))
    objective.after_task(trained, lambda _: [picture], forward, Task(0, "", every, every, classes, 0))
    backbone = 4 * _PARAMETERS if adapter.trains_backbone else 0
    return (
        backbone
        + stored_bytes({"adapter": adapter.state()[0], "objective": objective.state()[0]})
        + head.declared_bytes()
    )
