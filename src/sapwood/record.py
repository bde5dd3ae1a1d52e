"""What the record of a version says of its classes and files; nothing here needs a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PICTURES, FEATURES = "pictures.jsonl", "features.safetensors"
"""Of a round: what is remembered of its pictures, a line each, and their features where they are kept."""


def task_names(record: Mapping[str, Any]) -> tuple[str, ...]:
    """All class names of a version in learning order."""
    return tuple(entry["name"] for entry in record["classes"])


def next_class_id(record: Mapping[str, Any]) -> int:
    """An id that no class has, nor had in an earlier version of this line.

    >>> next_class_id({"classes": [{"id": 0}, {"id": 4}]}), next_class_id({"classes": [], "next_class_id": 7})
    (5, 7)
    """
    free = 1 + max((entry["id"] for entry in record["classes"]), default=-1)
    return max(free, record.get("next_class_id", 0))
