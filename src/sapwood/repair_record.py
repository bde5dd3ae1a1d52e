"""What renaming, merging and removing a class, and relabelling pictures, make of a version's record."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sapwood.data.legend import BACKGROUND
from sapwood.data.names import check_class_names, class_name, same_name_key
from sapwood.errors import DataError
from sapwood.record import next_class_id, task_names

Record = dict[str, Any]


def known_class(record: Mapping[str, Any], name: str) -> str:
    """The name of a class as the record writes it.

    Raises:
        DataError: there is no such class, or it is the background.
    """
    names = task_names(record)
    wanted = class_name(name, "the command line")
    if wanted == BACKGROUND and record["kind"] == "segmentation":
        raise DataError("the background is no class that was taught; it cannot be changed")
    if wanted not in names:
        near = difflib.get_close_matches(wanted, names, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise DataError(f"no class {wanted!r} is known.{hint} Known: {', '.join(names) or 'none'}")
    return wanted


def renamed(record: Mapping[str, Any], old: str, new: str) -> Record:
    """The record with another name for a class; ids, order and numbers stay.

    Raises:
        DataError: the name is taken, not allowed, or the same.
    """
    names = task_names(record)
    new = class_name(new, "the new name")
    if new == old:
        raise DataError(f"class {old!r} has this name already")
    if new in names:
        raise DataError(f"there is a class {new!r} already; to make one of both: classes STATE merge {old!r} {new!r}")
    if record["kind"] == "segmentation" and same_name_key(new) == BACKGROUND:
        raise DataError(f"class {old!r} cannot be called {new!r}, which is what the background is called")
    check_class_names([new], "the new name", [name for name in names if name != old])

    def other(listed: Iterable[str]) -> list[str]:
        return [new if name == old else name for name in listed]

    tasks = []
    for task in record["tasks"]:
        task = {**task, "classes": other(task["classes"]), "annotated": other(task["annotated"])}
        for key in ("per_class", "counts"):
            if values := task.get("measured", {}).get(key):
                renewed = {new if name == old else name: value for name, value in values.items()}
                task["measured"] = {**task["measured"], key: renewed}
        tasks.append(task)
    classes = [
        {**entry, "name": new, "was": [*entry.get("was", ()), old]} if entry["name"] == old else entry
        for entry in record["classes"]
    ]
    return {**record, "classes": classes, "tasks": tasks}


def groups_without(names: Sequence[str], old: str, into: str | None) -> list[list[int]]:
    """Old channels of each channel that stays, once ``old`` is gone or is a part of ``into``.

    >>> groups_without(["a", "b", "c"], "b", None), groups_without(["a", "b", "c"], "a", "c")
    ([[0], [2]], [[1], [2, 0]])
    """
    gone = names.index(old)
    return [[index, gone] if name == into else [index] for index, name in enumerate(names) if name != old]


def without(record: Mapping[str, Any], old: str, into: str | None) -> Record:
    """The record once a class is gone (``into`` None) or its pictures count as those of another one.

    Cells of the matrix that the classes had a part in are null: what was measured no longer holds.
    """
    names = task_names(record)
    groups = groups_without(names, old, into)
    channel = {member: index for index, group in enumerate(groups) for member in group}
    gone = next(entry for entry in record["classes"] if entry["name"] == old)
    called = [*gone.get("was", ()), old]
    classes = [
        {**entry, "was": [*entry.get("was", ()), *called]} if entry["name"] == into else entry
        for entry in record["classes"]
        if entry is not gone
    ]
    order = {entry["name"]: index for index, entry in enumerate(classes)}
    forgotten = forget_measured(record, {name for name in (old, into) if name is not None})
    tasks = []
    for task in forgotten["tasks"]:
        shown = {into if name == old else name for name in task["annotated"]} - {None}
        task = {**task, "annotated": sorted(shown, key=order.__getitem__)}
        task["classes"] = [name for name in task["classes"] if name != old]
        adapter = task["parts"].get("adapter")
        if adapter is not None and isinstance(taught := adapter["meta"].get("classes"), list):
            left = sorted({channel[index] for index in taught if index in channel})
            task["parts"] = {**task["parts"], "adapter": {**adapter, "meta": {**adapter["meta"], "classes": left}}}
        tasks.append(task)
    return {**forgotten, "classes": classes, "next_class_id": next_class_id(record), "tasks": tasks}


def forget_measured(record: Mapping[str, Any], classes: Collection[str], also: Collection[int] = ()) -> Record:
    """The record without the numbers in which classes had a part: cells of their rounds, and of rounds in ``also``.

    Nothing is left of the last row either: it tells of the present version, which calls other pictures otherwise now.
    """
    touched = {
        index
        for index, task in enumerate(record["tasks"])
        if index in also or not {*task["classes"], *task["annotated"]}.isdisjoint(classes)
    }
    first = min(touched, default=len(record["tasks"]))
    tasks = []
    for index, task in enumerate(record["tasks"]):
        # Once the classes were known, they had a part in what was measured over all.
        task = {key: value for key, value in task.items() if key != "measured" or index < first}
        tasks.append({**task, "validation_accuracy": None} if index in touched else task)
    last = len(record["accuracy"]) - 1
    accuracy = [
        [None if index in touched or after == last else cell for index, cell in enumerate(row)]
        for after, row in enumerate(record["accuracy"])
    ]
    return {**record, "tasks": tasks, "accuracy": accuracy}


def counted_for(row: Mapping[str, Any], identifier: int, classes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """A row of ``pictures.jsonl`` with another class, and the names that its old one has had.

    >>> counted_for({"sha256": "ab", "label": 0}, 1, [{"id": 0, "name": "ant", "was": ["emmet"]}])
    {'sha256': 'ab', 'label': 1, 'was': ['emmet', 'ant']}
    """
    old = next(entry for entry in classes if entry["id"] == row["label"])
    return {**row, "label": identifier, "was": [*row.get("was", ()), *old.get("was", ()), old["name"]]}


def recount(task: dict[str, Any], rows: Sequence[Mapping[str, Any]], names: Mapping[int, str]) -> None:
    """Bring a round's entry up to date with its pictures: how many, and of which classes.

    Args:
        task: changed in place.
        rows: of ``pictures.jsonl``.
        names: of the classes by id, in learning order.
    """
    task["images"] = len(rows)
    task["validation_images"] = sum(row["split"] == "validation" for row in rows)
    present = {row["label"] for row in rows}
    task["annotated"] = [name for identifier, name in names.items() if identifier in present]
