"""What a version's record says of the rounds, and how the next record follows from the present one."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from sapwood.assembly import write_parts
from sapwood.costs import seconds_per_picture, stored_bytes
from sapwood.kinds import KINDS, Round
from sapwood.network import Network
from sapwood.objectives.base import Objective
from sapwood.preparation import Prepared
from sapwood.probes import PIXELS, ROWS, probe_files
from sapwood.record import FEATURES, PICTURES, as_json_lines, measured_pictures, next_class_id
from sapwood.settings import TrainingConfig, plain
from sapwood.state import State

MOST_FEATURE_BYTES = 8_000_000
"""Of a round, beyond which its features are not kept."""


def commit_round(
    state: State,
    network: Network,
    objective: Objective,
    prepared: Prepared,
    learned: Mapping[str, Any],
    confusion: Tensor | None,
) -> None:
    """Write what a round left behind and make it the current version.

    Args:
        state, network, objective: as they are after the round.
        prepared: the round.
        learned: what ``learn_round`` gave.
        confusion: counts [K, K] on pictures to measure on, None without.
    """
    round_, config, probes = prepared.round, prepared.config, prepared.probes
    tensors, parts = write_parts(network, objective, adapted=learned["adapted"])
    if (features := kept_features(network, config, learned)) is not None:
        tensors[FEATURES] = {"features": features}
    folder = state.free_task_folder(round_.task.index + 1, round_.task.name)
    facts = {
        **learned,
        "seconds_per_picture": seconds_per_picture(network, round_.size),
        "precision": network.precision,
        "folder": folder,
        "parts": parts,
        "declared_bytes": stored_bytes(tensors),
    }
    record = after_round(state.version.record, prepared, facts, confusion, network.device)
    if learned["adapted"]:  # what earlier rounds keep are features of another network
        record["files"] = {name: entry for name, entry in record["files"].items() if not name.endswith(f"/{FEATURES}")}
    files: dict[str, Any] = {f"{folder}/{name}": content for name, content in tensors.items()}
    files[f"{folder}/{PICTURES}"] = as_json_lines(manifest(round_, record))
    files[f"{folder}/log.jsonl"] = as_json_lines(learned["log"])
    if probes:
        record["tasks"][-1]["probe_images"] = len(probes)
        rows, files[f"{folder}/{PIXELS}"] = probe_files(probes, record["classes"])
        files[f"{folder}/{ROWS}"] = as_json_lines(rows)
    if prepared.keep_probe or "keep_probe" in record:
        record["keep_probe"] = prepared.keep_probe
    state.commit(record, files, f"learn {round_.task.name}")


def kept_features(network: Network, config: TrainingConfig, learned: Mapping[str, Any]) -> Tensor | None:
    """Pooled features [n, d] float32 of a round's pictures, in the order of its manifest, if they are to be kept.

    They are where they stay true, so that pictures can be taken out of a head's sums again: for a head that predicts
    from statistics, on an adapter that never moves them, or only in the first round; up to 8 MB.
    """
    features: Tensor | None = learned.get("features")
    stays = not network.adapter.moves or config.adapt == "first"
    if features is None or network.head.fitted != "statistics" or not stays:
        return None
    return features if features.numel() * features.element_size() <= MOST_FEATURE_BYTES else None


def manifest(round_: Round, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is remembered of a round's pictures, with ids of classes, which stay, for their indices, which may not."""
    ids = [entry["id"] for entry in record["classes"]]
    return [{**row, "label": ids[row["label"]]} if "label" in row else row for row in round_.manifest()]


def after_round(
    record: Mapping[str, Any],
    prepared: Prepared,
    facts: Mapping[str, Any],
    confusion: Tensor | None,
    device: torch.device,
) -> dict[str, Any]:
    """The record after a round: its classes, its entry among the tasks, its row of the accuracy matrix."""
    round_, task, source = prepared.round, prepared.round.task, prepared.source
    entry = {
        "name": task.name,
        "folder": facts["folder"],
        "classes": [round_.names[index] for index in task.new],
        "annotated": [round_.names[index] for index in task.annotated],
        "images": len(round_),
        "validation_images": len(round_.held),
        "seed": task.seed,
        "seconds": facts["seconds"],
        "trainable_parameters": facts["trainable_parameters"],
        "train_gmacs": facts["train_gmacs"],
        "pass_gmacs": facts["pass_gmacs"],
        "validation_accuracy": facts["validation_accuracy"],
        "declared_bytes": facts["declared_bytes"],
        "peak_memory": peak_memory(),
        "seconds_per_picture": facts["seconds_per_picture"],
        "parts": facts["parts"],
        "head_fit": {key: value for key, value in facts["head"].items() if isinstance(value, int | float | str)},
        "device": str(device),
        "precision": facts["precision"],
        "adapted": facts["adapted"],
        "threads": torch.get_num_threads(),
        "libraries": libraries(),
    }
    tasks = [*record["tasks"], entry]
    kind = KINDS[record["kind"]]
    measured_on: list[str | None] = [None] * len(tasks)
    if confusion is not None:
        row = kind.cells(confusion, round_.names, tasks)
        entry["measured"] = kind.summary(confusion, round_.names, tasks)
        names = kind.measured_on(prepared.tests, tasks)
        measured_on = [None if cell is None else name for cell, name in zip(row, names, strict=True)]
    else:
        row, source = [None] * len(tasks), "validation"
        row[-1] = facts["validation_accuracy"]
    known, free = len(record["classes"]), next_class_id(record)
    brought = [{"id": free + count, "name": name} for count, name in enumerate(round_.names[known:])]
    return {
        **record,
        "settings": {**record["settings"], "training": plain(prepared.config)},
        "classes": [*record["classes"], *brought],
        "next_class_id": free + len(brought),
        "tasks": tasks,
        "accuracy": [*record["accuracy"], row],
        "accuracy_on": [*record["accuracy_on"], source],
        "measured_on": [*measured_pictures(record), measured_on],
    }


def after_measuring(
    record: Mapping[str, Any], names: tuple[str, ...], tests: Any, confusion: Tensor, options: Any = None
) -> dict[str, Any]:
    """The record with the last row of the matrix filled from a measurement; other cells of the row stay."""
    row, measured_on, tasks = list(record["accuracy"][-1]), measured_pictures(record), list(record["tasks"])
    kind, before = KINDS[record["kind"]], tasks[-1].get("measured", {})
    if record["accuracy_on"][-1] != "test":
        row, measured_on[-1], before = [None] * len(row), [None] * len(row), {}
    for index, (cell, pictures) in enumerate(
        zip(kind.cells(confusion, names, tasks), kind.measured_on(tests, tasks, options), strict=True)
    ):
        if cell is not None:
            row[index], measured_on[-1][index] = cell, pictures
    tasks[-1] = {**tasks[-1], "measured": _with_others(before, kind.summary(confusion, names, tasks), names)}
    return {
        **record,
        "tasks": tasks,
        "accuracy": [*record["accuracy"][:-1], row],
        "accuracy_on": [*record["accuracy_on"][:-1], "test"],
        "measured_on": measured_on,
    }


def _with_others(before: Mapping[str, Any], measured: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """A summary with the classes of an earlier one that it has not measured; then nothing is said over all."""
    apart = ("per_class", "counts")
    if before.get("per_class", {}).keys() <= measured["per_class"].keys():
        return dict(measured)
    found = {key: value if key in apart else None for key, value in measured.items()}
    for key in apart:
        both = {**before.get(key, {}), **measured[key]}
        found[key] = {name: both[name] for name in names if name in both}
    return found


@cache
def libraries() -> dict[str, str]:
    """Versions of what computes, for the record."""
    found = {"python": platform.python_version()}
    for name in ("sapwood", "torch", "transformers", "accelerate", "numpy", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes; on a GPU the largest allocation."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if os.name != "posix":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
