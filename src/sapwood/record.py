"""What the record of a version says of its classes and files; nothing here needs a network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

PICTURES, FEATURES = "pictures.jsonl", "features.safetensors"
"""Of a round: what is remembered of its pictures, a line each, and their features where they are kept."""


def task_names(record: Mapping[str, Any]) -> tuple[str, ...]:
    """All class names of a version in learning order."""
    return tuple(entry["name"] for entry in record["classes"])


def measured_rounds(record: Mapping[str, Any]) -> list[int]:
    """Which rounds have a column in the matrix: masks are measured on the classes that a round brought, if any."""
    masks = record["kind"] == "segmentation"
    return [index for index, task in enumerate(record["tasks"]) if task["classes"] or not masks]


def next_class_id(record: Mapping[str, Any]) -> int:
    """An id that no class has, nor had in an earlier version of this line.

    >>> next_class_id({"classes": [{"id": 0}, {"id": 4}]}), next_class_id({"classes": [], "next_class_id": 7})
    (5, 7)
    """
    free = 1 + max((entry["id"] for entry in record["classes"]), default=-1)
    return max(free, record.get("next_class_id", 0))


def as_json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """One compact JSON object a line."""
    return "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)


def of_json_lines(text: str) -> list[dict[str, Any]]:
    """What ``as_json_lines`` wrote.

    >>> of_json_lines(as_json_lines([{"label": 0}, {"label": 1}]))
    [{'label': 0}, {'label': 1}]
    """
    return [json.loads(line) for line in text.splitlines()]
