"""Bytes that a round leaves in the state folder."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sapwood.adapters import ADAPTERS
from sapwood.adapters.base import Adapter
from sapwood.assembly import merge_settings
from sapwood.backbones.base import BackboneInfo, Site
from sapwood.depths import width_read
from sapwood.heads import HEADS
from sapwood.methods import Method
from sapwood.objectives import OBJECTIVES
from sapwood.settings import build
from sapwood.task import Task

# DINOv2 ViT-S/14 with its table of 37 x 37 positions.
_WIDTH, _DEPTH, _PARAMETERS = 384, 12, 22_056_576
# Part, what it reads, and the widths of input and output.
_PROJECTIONS = (
    ("q", "qkv", 1, 1),
    ("k", "qkv", 1, 1),
    ("v", "qkv", 1, 1),
    ("o", "o", 1, 1),
    ("fc1", "fc1", 1, 4),
    ("fc2", "fc2", 4, 1),
)


def stored_bytes(files: Mapping[str, Mapping[str, Tensor]]) -> int:
    """Bytes of the tensors in a round's files, without headers: what the method declares to keep."""
    return sum(tensor.numel() * tensor.element_size() for tensors in files.values() for tensor in tensors.values())


def example_adapter(method: Method) -> Adapter:
    """That of a method on a ViT-S/14, unfilled."""
    info = BackboneInfo("", "dinov2", "", "", "", _WIDTH, 14, _DEPTH, 6, 1, 224, (0, 0, 0), (1, 1, 1))
    sites = [
        Site(f"block.{block}.{part}", "linear", inputs * _WIDTH, outputs * _WIDTH, f"block.{block}.{key}", "")
        for block in range(_DEPTH)
        for part, key, inputs, outputs in _PROJECTIONS
    ]
    made = ADAPTERS[method.adapter]
    return made(build(made.Config, merge_settings(method)["adapter"], "adapter"), sites, info)


def declared_bytes(method: Method, classes: int) -> int:
    """Bytes that a first round of so many classes keeps on a ViT-S/14: what its parts give for the state, unfilled.

    Of a segmentation, ``classes`` counts the background.
    """
    settings, adapter = merge_settings(method), example_adapter(method)
    head_type, objective_type = HEADS[method.head], OBJECTIVES[method.objective]
    config: Any = build(head_type.Config, settings["head"], "head")
    head = head_type(config, width_read(config, adapter.info))
    head.grow(classes, torch.Generator())
    objective = objective_type(build(objective_type.config_type(method.kind), settings["objective"], "objective"))
    trained = {f"adapter.{name}": parameter for name, parameter in adapter.named_parameters()}
    trained |= {f"head.{name}": parameter for name, parameter in head.named_parameters()}

    masks = method.kind == "segmentation"
    new = tuple(range(int(masks), classes))
    pixels = (1, 1) if masks else ()

    def forward(batch: Any) -> Tensor:
        touched = torch.stack([parameter.sum() for parameter in trained.values()]).sum()
        return touched * torch.ones(1, classes, *pixels)

    picture = SimpleNamespace(targets=torch.full((1, *pixels), new[0]))
    objective.after_task(trained, lambda _: [picture], forward, Task(0, "", new, new, classes, 0))
    objective.settle(trained)
    backbone = 4 * _PARAMETERS if adapter.trains_backbone else 0
    return (
        backbone
        + stored_bytes({"adapter": adapter.state()[0], "objective": objective.state()[0]})
        + head.declared_bytes()
    )
