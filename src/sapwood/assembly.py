"""From what a version records to a network that computes, and back."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from sapwood.adapters import ADAPTERS, Adapter
from sapwood.backbones.base import Backbone
from sapwood.backbones.lending import Lend
from sapwood.backbones.packed import open_recorded
from sapwood.depths import check_read, width_read
from sapwood.errors import ConfigError, StateError
from sapwood.heads import HEADS
from sapwood.methods import Method
from sapwood.methods.legality import check_head, misfit_on
from sapwood.network import Network
from sapwood.objectives import OBJECTIVES
from sapwood.objectives.base import Objective
from sapwood.settings import TrainingConfig, build, plain
from sapwood.state import State
from sapwood.task import Snapshot

Overrides = Mapping[str, Mapping[str, Any]]


def config_types(parts: Mapping[str, str]) -> dict[str, type]:
    """The settings of each part, and of training."""
    head = HEADS[parts["head"]]
    return {
        "adapter": ADAPTERS[parts["adapter"]].Config,
        "objective": OBJECTIVES[parts["objective"]].config_type(head.kind),
        "head": head.Config,
        "training": TrainingConfig,
    }


def merge_settings(method: Method, *layers: Overrides) -> dict[str, dict[str, Any]]:
    """All settings of a method, later layers over earlier ones, checked and complete.

    Raises:
        ConfigError: settings of a part that there is not, that the part has not, or that do not go together.
    """
    parts = {"adapter": method.adapter, "objective": method.objective, "head": method.head}
    types = config_types(parts)
    if unknown := [part for layer in layers for part in layer if part not in types]:
        raise ConfigError(f"settings are given by part, and {unknown[0]!r} is none; parts: {', '.join(types)}")
    demanded: Overrides = {"head": OBJECTIVES[method.objective].head} if method.kind == "segmentation" else {}
    merged: dict[str, dict[str, Any]] = {}
    for part, config_type in types.items():
        values: dict[str, Any] = {}
        for layer in (demanded, method.settings, *layers):
            values |= layer.get(part, {})
        merged[part] = plain(build(config_type, values, part))
    check_head(method.objective, method.head, merged["head"])
    return merged


def new_record(
    backbone: Backbone, method: Method, image_size: int | Sequence[int], seed: int, overrides: Overrides
) -> dict[str, Any]:
    """The record of a state that has learned nothing yet."""
    if method.all_data:
        raise ConfigError(
            f"method {method.name!r} needs the pictures of all rounds at once; it runs only in benchmarks"
        )
    if reason := misfit_on(backbone, adapter=method.adapter, objective=method.objective):
        raise ConfigError(f"method {method.name!r}: {reason}")
    settings = merge_settings(method, overrides)
    check_read(build(HEADS[method.head].Config, settings["head"], "head"), backbone)
    return {
        "kind": method.kind,
        "backbone": asdict(backbone.info),
        "image_size": image_size if isinstance(image_size, int) else list(image_size),
        "method": method.name,
        "parts": {"adapter": method.adapter, "objective": method.objective, "head": method.head},
        "settings": settings,
        "seed": operator.index(seed),
        "classes": [],
        "tasks": [],
        "accuracy": [],
        "accuracy_on": [],
    }


def training_config(record: Mapping[str, Any]) -> TrainingConfig:
    """The training settings of a version."""
    return build(TrainingConfig, record["settings"]["training"], "training")


@torch.inference_mode(False)
def assemble(
    record: Mapping[str, Any],
    state: State | None,
    device: torch.device,
    precision: str,
    lend: Lend | None = None,
) -> tuple[Network, Objective]:
    """Build the network and the objective of a version and fill them with what its files hold.

    Where ``lend`` has the frozen weights they are not read again.

    Raises:
        StateError: the backbone's weights are not those the state was made with.
    """
    parts, settings = record["parts"], record["settings"]
    info = record["backbone"]
    backbone = None if lend is None else lend(info, record["image_size"], device, precision)
    if backbone is None:
        backbone = open_recorded(info, record["image_size"], None if state is None else state.path)
    if backbone.info.sha256 != info["sha256"]:
        raise StateError(
            f"the state was made with {info['name']} of sha256 {info['sha256'][:12]}, but the weights found now have "
            f"{backbone.info.sha256[:12]}; put the original weights back"
        )
    configs: dict[str, Any] = {
        part: build(config, settings[part], part) for part, config in config_types(parts).items()
    }
    adapter = ADAPTERS[parts["adapter"]](configs["adapter"], backbone.sites, backbone.info)
    head = HEADS[parts["head"]](configs["head"], width_read(configs["head"], backbone.info))
    objective = OBJECTIVES[parts["objective"]](configs["objective"])
    network = Network(backbone, adapter, head)
    tasks = record["tasks"]
    if tasks and state is not None:
        if adapter.trains_backbone:
            backbone.load_state_dict(state.tensors(f"{tasks[-1]['folder']}/backbone.safetensors"))
        adapter.load(adapter_history(state, tasks, adapter))
        head.load(*read_part(state, tasks[-1], "head"))
        tensors, meta = read_part(state, tasks[-1], "objective")
        objective.load(({name: tensor.to(device) for name, tensor in tensors.items()}, meta))
    network.to(device)
    network.set_precision(precision)
    return network, objective


def adapter_history(state: State, tasks: Sequence[Mapping[str, Any]], adapter: Adapter) -> list[Snapshot]:
    """What an adapter loads: the last round's snapshot, or those of all rounds in which it learned."""
    if adapter.history == "last":
        return [read_part(state, tasks[-1], "adapter")]
    return [read_part(state, task, "adapter") for task in tasks if task["parts"]["adapter"] is not None]


def read_part(state: State, task: Mapping[str, Any], part: str) -> Snapshot:
    """Tensors (possibly none) and JSON that a round left behind for one part."""
    meta = task["parts"].get(part)
    if meta is None:
        return {}, {}
    return (state.tensors(f"{task['folder']}/{part}.safetensors") if meta["stored"] else {}), meta["meta"]


def write_parts(
    network: Network, objective: Objective, *, adapted: bool
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Files of a round by name without folder, and what the record says of each part.

    Where every round stores what it added, one in which the adapter did not learn (``adapted``) stores nothing of it.
    """
    snapshots = {"adapter": network.adapter.state(), "head": network.head.state(), "objective": objective.state()}
    files: dict[str, dict[str, Tensor]] = {}
    said: dict[str, Any] = {}
    if network.adapter.history == "all" and not adapted:
        del snapshots["adapter"]
        said["adapter"] = None
    for part, (tensors, meta) in snapshots.items():
        said[part] = {"stored": bool(tensors), "meta": meta}
        if tensors:
            files[f"{part}.safetensors"] = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    if network.adapter.trains_backbone:
        files["backbone.safetensors"] = {
            name: tensor.detach().contiguous().cpu() for name, tensor in network.backbone.state_dict().items()
        }
    return files, said


def resolve_device(wanted: str | torch.device | None) -> torch.device:
    """The device of that name; by default the GPU where there is one.

    Raises:
        ConfigError: torch knows no such device.
    """
    try:
        return torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ConfigError(f"device {wanted!r}: {str(error).splitlines()[0]}") from None


def resolve_precision(wanted: str, device: torch.device) -> str:
    """``auto`` is bf16 where the device multiplies it natively, else fp32."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    if device.type == "cpu":
        # Without these instructions bf16 products are emulated and several times slower than fp32.
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return "bf16" if native else "fp32"
    return "fp32"
