"""What the record of a version says of its classes and files; nothing here needs a network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

PICTURES, FEATURES = "pictures.jsonl", "features.safetensors"
"""Of a round: what is remembered of its pictures, a line each, and their features where they are kept."""

_SOME = 5


def task_names(record: Mapping[str, Any]) -> tuple[str, ...]:
    """All class names of a version in learning order."""
    return tuple(entry["name"] for entry in record["classes"])


def measured_rounds(record: Mapping[str, Any]) -> list[int]:
    """Which rounds have a column in the matrix: masks are measured on the classes that a round brought, if any."""
    masks = record["kind"] == "segmentation"
    return [index for index, task in enumerate(record["tasks"]) if task["classes"] or not masks]


def measured_pictures(record: Mapping[str, Any]) -> list[list[str | None]]:
    """For each cell of the matrix what names the pictures that it was measured on; None where that is not known.

    >>> measured_pictures({"accuracy": [[0.9], [0.5, 0.75]]})
    [[None], [None, None]]
    """
    unknown: list[list[str | None]] = [[None] * len(row) for row in record["accuracy"]]
    return [list(row) for row in record.get("measured_on", unknown)]


def compares(record: Mapping[str, Any], after: int, on: int) -> bool:
    """Whether a cell of the matrix and the last one of its column were measured on the same pictures, if that is known.

    >>> record = {"accuracy": [[0.9], [0.5, 0.75]], "measured_on": [["a"], ["b", "c"]]}
    >>> [compares(record, *cell) for cell in ((0, 0), (1, 0), (1, 1))]
    [False, True, True]
    """
    names = measured_pictures(record)
    return names[after][on] == names[-1][on] or None in (names[after][on], names[-1][on])


def other_pictures(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Rounds whose cells were measured on other pictures before than last: nothing can be read down their column."""
    last = record["accuracy_on"][-1] if record["accuracy_on"] else ""
    rows = [after for after, source in enumerate(record["accuracy_on"]) if source == last]
    return tuple(
        task["name"]
        for on, task in enumerate(record["tasks"])
        if not all(compares(record, after, on) for after in rows if on <= after)
    )


def columns_apart(names: Sequence[str]) -> str:
    """What people are told of ``other_pictures``; of none, nothing.

    >>> columns_apart(("task-1", "task-2"))
    'Measured on other pictures before than after the last round, so not to be compared: task-1, task-2.'
    """
    if not names:
        return ""
    some = ", ".join(names[:_SOME]) + (f" and {len(names) - _SOME} more" if len(names) > _SOME else "")
    return f"Measured on other pictures before than after the last round, so not to be compared: {some}."


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
