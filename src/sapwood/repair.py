"""Mending what was learned: other names, classes that are one or should not be there, labels that were wrong."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from sapwood.data.legend import BACKGROUND
from sapwood.errors import ConfigError, DataError
from sapwood.heads.gaussian import GradientHead
from sapwood.probes import PIXELS, ROWS, other_probes
from sapwood.progress import Progress
from sapwood.record import as_json_lines, task_names
from sapwood.repair_correction import adapter_holds
from sapwood.repair_draft import Draft
from sapwood.repair_names import Repair, kept_bytes, list_classes, rename_class
from sapwood.repair_record import counted_for, forget_measured, known_class, recount
from sapwood.repair_steps import (
    finish,
    forget_pictures,
    holdovers,
    other_labels,
    regroup,
    relabel_rows,
    relabel_sums,
    rounds_with,
)
from sapwood.repair_sums import Sums, open_head
from sapwood.state import State
from sapwood.wording import counted

__all__ = ["Repair", "kept_bytes", "list_classes", "merge_classes", "relabel", "remove_class", "rename_class"]


def merge_classes(state: State, old: str, into: str) -> Repair:
    """Make one class of two: pictures of ``old`` count as ``into`` from now on.

    Raises:
        UsageError: no such class, twice the same one, or a state that draws masks.
    """
    with state.writer():
        old, into = known_class(state.version.record, old), known_class(state.version.record, into)
        _refuse_masks(state, "merge two classes")
        if old == into:
            raise DataError(f"class {old!r} cannot be merged with itself; name two classes")
        draft = Draft(state)
        head = open_head(draft)
        ids = {entry["name"]: entry["id"] for entry in draft.record["classes"]}
        for index in range(len(draft.tasks)):
            rows = draft.rows(index)
            if any(row["label"] == ids[old] for row in rows):
                rows = [
                    counted_for(row, ids[into], draft.record["classes"]) if row["label"] == ids[old] else row
                    for row in rows
                ]
                draft.put_rows(index, rows, None)
        _regroup_probes(draft, ids[old], ids[into])
        remarks = adapter_holds(draft, rounds_with(draft, old), f"on {old!r} as a class of its own")
        if head.fitted == "gradient":
            remarks.append(
                f"the row of {into!r} is its own, that of {old!r} is gone; where pictures like those of {old!r} are "
                f"not called {into!r}, learn some of them as {into!r}"
            )
        remarks += regroup(draft, head, old, into)
        remarks.append(f"pictures to learn or to measure on must be of class {into!r} from now on")
        return finish(draft, f"merge {old} -> {into}", remarks)


def remove_class(
    state: State,
    name: str,
    *,
    pictures: Any = None,
    inexact: bool = False,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
) -> Repair:
    """Let go of a class and of what is kept of its pictures.

    Of a head that predicts from statistics, on a backbone that stays, nothing of the class is left: its sums are what
    they would be had the class never been learned, with the strength and the temperature of before.

    Args:
        state: to change.
        name: of the class.
        pictures: those of the class, as paths or a folder, where the state keeps no features of them.
        inexact: go on where the head's sums still hold pictures of the class.
        device: where features are computed if need be.
        progress: listens.

    Raises:
        UsageError: no such class, the last one, or sums that would still hold the class (without ``inexact``).
    """
    progress = progress or Progress()
    with state.writer():
        record = state.version.record
        name = known_class(record, name)
        left = [each for each in task_names(record) if each != name]
        if not set(left) - ({BACKGROUND} if record["kind"] == "segmentation" else set()):
            raise DataError(f"{name!r} is the last class of {state.path}; remove the folder to be rid of it")
        draft = Draft(state)
        head = open_head(draft)
        remarks = holdovers(draft, head, name)
        draft.record = forget_measured(draft.record, {name})  # before rounds let go of the class
        _regroup_probes(draft, next(entry["id"] for entry in record["classes"] if entry["name"] == name), None)
        if record["kind"] == "classification":
            remarks += forget_pictures(draft, head, name, pictures, inexact, device, progress)
        else:
            remarks.append(f"pixels of {name!r} are drawn as what comes second there, mostly the background")
        for index in range(len(draft.tasks) - 1):  # nobody reads these any more, and they may hold the class
            for part in ("head", "objective"):
                draft.put_part(index, part, None)
            draft.put(index, "backbone.safetensors", None)
        remarks += regroup(draft, head, name, None)
        remarks.append(f"earlier versions still hold {name!r}: `sapwood prune {state.path} --keep 1` removes them")
        return finish(draft, f"remove {name}", remarks)


def relabel(
    state: State,
    pictures: Any,
    to: str,
    *,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
) -> Repair:
    """Count pictures that were learned for another class.

    Of a head that predicts from statistics, on a backbone that stays, the sums are afterwards what they would be had
    the pictures been learned so, with the strength and the temperature of before. Where the features have moved since,
    those of today are moved between the classes. Rows that were trained by gradients are re-tuned on these pictures
    with their new label beside features drawn from what the head keeps of all classes. The remarks say what came of
    it, and what may still hold the old labels.

    Args:
        state: to change.
        pictures: files or folders; they are known by their hash.
        to: name of a known class.
        device: where features are computed if need be.
        progress: listens.

    Raises:
        UsageError: no such class, a picture that was never learned, nothing to change, or a state that draws masks.
    """
    progress = progress or Progress()
    with state.writer():
        _refuse_masks(state, "relabel pictures")
        to = known_class(state.version.record, to)
        draft = Draft(state)
        changed, before, store = other_labels(draft, pictures, to, progress)
        names = {entry["id"]: entry["name"] for entry in draft.record["classes"]}
        identifier = next(each for each, name in names.items() if name == to)
        head = open_head(draft)
        corrects = isinstance(head, Sums | GradientHead)
        draft.record = forget_measured(draft.record, {names[row["label"]] for row in before} | {to}, changed)
        for index in changed:
            task = draft.tasks[index]
            recount(task, draft.rows(index), names)
            adapter = task["parts"].get("adapter")
            if corrects and adapter is not None and isinstance(adapter["meta"].get("classes"), list):
                order = {name: position for position, name in enumerate(task_names(draft.record))}
                adapter["meta"]["classes"] = [order[name] for name in task["annotated"]]
        how = (before, store, identifier, device, progress)
        if isinstance(head, Sums):
            remarks = relabel_sums(draft, head, *how)
        elif isinstance(head, GradientHead):
            remarks = relabel_rows(draft, head, *how)
        else:
            remarks = [
                "what predicts has not changed: it was trained with the old labels and cannot unlearn them; "
                f"learn such pictures as {to!r} in a further round"
            ]
        if corrects:
            draft.put_part(len(draft.tasks) - 1, "head", head.state())
        remarks += adapter_holds(draft, changed, "with the old labels of these pictures")
        counts = Counter(row["label"] for index in range(len(draft.tasks)) for row in draft.rows(index))
        remarks += [
            f"no picture of {name!r} is left; `sapwood classes {state.path} remove {name!r}` takes the class away"
            for identifier, name in names.items()
            if not counts[identifier]
        ]
        count = len({row["sha256"] for row in before})
        return finish(draft, f"relabel {counted(count, 'picture')} -> {to}", remarks)


def _regroup_probes(draft: Draft, gone: int, into: int | None) -> None:
    """Let go of the pictures that are kept to measure a class (by id) on, or count them as another one's."""
    for index, task in enumerate(draft.tasks):
        if f"{task['folder']}/{PIXELS}" in draft.record["files"]:
            rows, pixels = other_probes(*draft.probes(index), gone, into)
            draft.put(index, ROWS, as_json_lines(rows) if rows else None)
            draft.put(index, PIXELS, pixels or None)
            task["probe_images"] = len(rows)


def _refuse_masks(state: State, what: str) -> None:
    if state.version.record["kind"] == "segmentation":
        raise ConfigError(
            f"{state.path} draws masks: it cannot {what}, since what its pictures show is not remembered; "
            "mend the masks and learn them in a further round"
        )
