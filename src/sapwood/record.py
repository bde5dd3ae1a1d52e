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

    >>> measured_pictures({"accuracy": [[0.9], [None, 0.75]], "measured_on": [["a"], ["b", "c"]]})
    [['a'], [None, 'c']]
    >>> measured_pictures({"accuracy": [[0.9], [0.5, 0.75]]})
    [[None], [None, None]]
    """
    cells, names = record["accuracy"], record.get("measured_on", [])
    if [len(row) for row in names] != [len(row) for row in cells]:  # an earlier release has gone on with the state
        names = [[None] * len(row) for row in cells]
    return [
        [None if cell is None else name for cell, name in zip(*rows, strict=True)]
        for rows in zip(cells, names, strict=True)
    ]


def compares(names: Sequence[Sequence[str | None]], after: int, on: int, with_row: int = -1) -> bool:
    """Whether a cell of the matrix and that of another row were measured on the same pictures, if that is known.

    ``names`` is what ``measured_pictures`` gives.

    >>> [compares([["a"], ["b", "c"]], *cell) for cell in ((0, 0), (1, 0), (1, 1))]
    [False, True, True]
    """
    return names[after][on] == names[with_row][on] or None in (names[after][on], names[with_row][on])


def breaks(record: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    """Cells (row, column) of the matrix that were measured on other pictures than the cell above them."""
    cells, sources, names = record["accuracy"], record["accuracy_on"], measured_pictures(record)
    return tuple(
        (after, on)
        for after in range(1, len(cells))
        for on in range(after)
        if None not in (cells[after][on], cells[after - 1][on])
        and not (sources[after] == sources[after - 1] and compares(names, after, on, after - 1))
    )


def other_pictures(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Rounds whose cells were measured on different pictures of one source: nothing can be read down their column."""
    names, sources = measured_pictures(record), record["accuracy_on"]
    return tuple(
        task["name"]
        for on, task in enumerate(record["tasks"])
        if any(
            len({row[on] for row, each in zip(names[on:], sources[on:], strict=True) if each == source} - {None}) > 1
            for source in set(sources)
        )
    )


def columns_apart(names: Sequence[str]) -> str:
    """What people are told of ``other_pictures``; of none, nothing.

    >>> columns_apart(("task-1", "task-2"))
    'Measured on different pictures after different rounds, so not to be compared: task-1, task-2.'
    """
    if not names:
        return ""
    some = ", ".join(names[:_SOME]) + (f" and {len(names) - _SOME} more" if len(names) > _SOME else "")
    return f"Measured on different pictures after different rounds, so not to be compared: {some}."


def matrix_remarks(record: Mapping[str, Any]) -> list[str]:
    """What people are told below the matrix of a version: which cells are not to be compared, or only with care."""
    apart = columns_apart(other_pictures(record))
    return [remark for remark in (apart, "" if apart else _counted_later(record)) if remark]


def _counted_later(record: Mapping[str, Any]) -> str:
    """Of masks: that pixels of classes to come counted nowhere after earlier rounds."""
    if record["kind"] != "segmentation":
        return ""
    rows = zip(record["tasks"], record["accuracy_on"], strict=True)
    counted = [(task["name"], sum(task["measured"]["counts"].values())) for task, on in rows if _by_tests(task, on)]
    if not counted or counted[0][1] >= counted[-1][1]:
        return ""
    (first, few), (last, many) = counted[0], counted[-1]
    return (
        f"Pixels of classes that were not known yet count nowhere: {few:,} were measured after {first}, {many:,} after "
        f"{last}. Part of what old classes lose is what is drawn there; evaluate --future background measures all."
    )


def _by_tests(task: Mapping[str, Any], source: str) -> bool:
    return source == "test" and bool(task.get("measured", {}).get("counts"))


def former_names(record: Mapping[str, Any]) -> dict[str, str]:
    """Today's name of each name that a class once had and none has today.

    >>> former_names({"classes": [{"id": 0, "name": "trees", "was": ["tree"]}, {"id": 1, "name": "car"}]})
    {'tree': 'trees'}
    """
    today = task_names(record)
    return {was: entry["name"] for entry in record["classes"] for was in entry.get("was", ()) if was not in today}


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
