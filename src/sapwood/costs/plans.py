"""What a network will cost before it is there, and what that of a state folder costs."""

from __future__ import annotations

from os import PathLike
from typing import Any

import torch

from sapwood.adapters import ADAPTERS
from sapwood.adapters.lora import Lora, LoraConfig
from sapwood.assembly import adapter_history, config_types, read_part
from sapwood.backbones import Size, plan_backbone
from sapwood.backbones.packed import plan_recorded
from sapwood.costs.counting import Cost, network_cost
from sapwood.costs.stored import stored_bytes
from sapwood.depths import width_read
from sapwood.errors import ConfigError
from sapwood.heads import HEADS
from sapwood.heads.dense import DenseConfig, DenseHead
from sapwood.network import Network
from sapwood.settings import build, check
from sapwood.state import State


def clora_cost(
    backbone: str,
    image_size: Size | None = None,
    *,
    rank: int = 16,
    classes: int = 21,
    decoder: str = DenseConfig.decoder,
) -> Cost:
    """Cost of CLoRA (arXiv 2507.19887): LoRA on q and v of every block, a 1x1 decoder, a 1x1 classifier a class.

    On a convolutional network LoRA sits on its 3x3 convolutions.

    No weights are needed: SAM's ViT-L takes seconds on any machine.

    Args:
        backbone: as for ``create_backbone``.
        image_size: pixels a side, or (height, width); None takes the backbone's own.
        rank: of the factors.
        classes: channels of the logits, the background among them.
        decoder: as in ``DenseConfig``.

    Raises:
        UsageError: an unknown backbone or decoder, a size that does not fit it, a rank or a number of classes below 1.
    """
    check((classes >= 1, f"classes must be >= 1, got {classes}"))
    config = LoraConfig(rank=rank)
    settings = build(DenseConfig, {"decoder": decoder}, "head")
    planned = plan_backbone(backbone, image_size)
    adapter, head = Lora(config, planned.sites, planned.info), DenseHead(settings, planned.info.dim)
    head.grow(classes, torch.Generator())
    kept = stored_bytes({"adapter": adapter.state()[0], "head": head.state()[0]})
    return network_cost(Network(planned, adapter, head), kept)


def state_cost(path: str | PathLike[str]) -> Cost:
    """Cost of the network in a state folder, as it stands after its last round; the backbone's weights are not read.

    Raises:
        ConfigError: the state has learned nothing yet.
        UsageError: the folder is no state, or its backbone is not there any more.
    """
    return State.read(path, _state_cost)


def _state_cost(state: State) -> Cost:
    record = state.version.record
    tasks, parts, settings = record["tasks"], record["parts"], record["settings"]
    if not tasks:
        raise ConfigError(f"{state.path}: has learned nothing yet, so it has no classes to count; learn a round first")
    planned = plan_recorded(record["backbone"], record["image_size"], state.path)
    types = config_types(parts)
    configs: dict[str, Any] = {part: build(types[part], settings[part], part) for part in ("adapter", "head")}
    adapter = ADAPTERS[parts["adapter"]](configs["adapter"], planned.sites, planned.info)
    adapter.load(adapter_history(state, tasks, adapter))
    head = HEADS[parts["head"]](configs["head"], width_read(configs["head"], planned.info))
    head.load(*read_part(state, tasks[-1], "head"))
    return network_cost(Network(planned, adapter, head), int(tasks[-1]["declared_bytes"]))
