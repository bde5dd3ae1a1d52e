"""What a version holds, as plain JSON values: the same for the command line and for the server."""

from __future__ import annotations

from typing import Any

from sapwood.record import other_pictures
from sapwood.state.records import Version


def describe(version: Version, half_learned: str | None = None) -> dict[str, Any]:
    """What ``sapwood show --json`` prints; ``half_learned`` is the round that was begun and not committed."""
    record = version.record
    tasks = [
        {
            "name": task["name"],
            "classes": task["annotated"],
            "new_classes": task["classes"],
            "images": task["images"],
            "seconds": task["seconds"],
            "trainable_parameters": task["trainable_parameters"],
            "bytes": sum(
                entry["bytes"] for name, entry in record["files"].items() if name.startswith(f"{task['folder']}/")
            ),
            "validation_accuracy": task["validation_accuracy"],
            "seconds_per_picture": task["seconds_per_picture"],
            "peak_memory": task["peak_memory"],
        }
        for task in record["tasks"]
    ]
    return {
        "format": record["format"],
        "version": version.id,
        "kind": record["kind"],
        "method": record["method"],
        "backbone": record["backbone"]["name"],
        "backbone_licence": record["backbone"]["licence"],
        "image_size": record["image_size"],
        "classes": [entry["name"] for entry in record["classes"]],
        "tasks": tasks,
        "half_learned": half_learned,
        "accuracy": record["accuracy"],
        "accuracy_on": record["accuracy_on"],
        "other_pictures": other_pictures(record),
        "probe": {
            "images": sum(task.get("probe_images", 0) for task in record["tasks"]),
            "bytes": sum(entry["bytes"] for name, entry in record["files"].items() if "/probe." in name),
            "keep": record.get("keep_probe", 0),
        },
    }
