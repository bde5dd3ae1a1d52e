"""From a learner to the data of its report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sapwood.data.names import shown
from sapwood.functional import metrics
from sapwood.report.content import ReportData, ReportTask, Sample
from sapwood.report.markup import THUMBNAIL, size

if TYPE_CHECKING:
    from sapwood.learner import Learner


def gather(learner: Learner, data: Any = None, *, samples: int = 24, skip_bad: bool = False) -> ReportData:
    """What the current version has to report.

    Args:
        learner: open on the version that is reported.
        data: labelled pictures (class folder, CSV, ...), from which ``samples`` are shown with their predictions;
            None: no pictures, since the state keeps none.
        samples: how many; spread over the classes, the same ones every time.
        skip_bad: leave unreadable pictures out, else they are an error.
    """
    version = learner.state.version
    record = version.record
    pairs = zip(record["tasks"], record["accuracy_on"], strict=True)
    tasks = tuple(_task(task, source, record["files"]) for task, source in pairs)
    return ReportData(
        title=learner.state.path.resolve().name,
        version=version.id,
        method=record["method"],
        backbone=record["backbone"]["name"],
        created=record["created"].replace("T", " ").replace("+00:00", " UTC"),
        classes=learner.classes_,
        tasks=tasks,
        accuracy=tuple(tuple(row) for row in learner.accuracy_),
        numbers=_numbers(_tested(record), [len(task.classes) for task in tasks]),
        samples=() if data is None else _samples(learner, data, samples, skip_bad),
        costs=_costs(record),
        settings=_settings(record),
    )


def _task(task: Mapping[str, Any], source: str, files: Mapping[str, Mapping[str, Any]]) -> ReportTask:
    stored = sum(entry["bytes"] for name, entry in files.items() if name.startswith(task["folder"] + "/"))
    return ReportTask(
        name=task["name"],
        classes=tuple(task["annotated"]),
        images=task["images"],
        seconds=task["seconds"],
        trainable_parameters=task["trainable_parameters"],
        bytes=stored,
        measured_on="validation" if source == "validation" else "test",
    )


def _tested(record: Mapping[str, Any]) -> list[list[float | None]]:
    """The matrix without rows of validation pictures: a difference of two kinds of pictures measures nothing."""
    rows = zip(record["accuracy"], record["accuracy_on"], strict=True)
    return [list(row) if source == "test" else [None] * len(row) for row, source in rows]


def _numbers(rows: Sequence[Sequence[float | None]], weights: Sequence[int]) -> dict[str, float | None]:
    """The field's measures as far as the cells they need were measured."""
    tasks = len(rows)
    matrix = [[*row, *[None] * (tasks - len(row))] for row in rows]
    measures: dict[str, Callable[[], float]] = {}
    if tasks:
        measures["last accuracy"] = lambda: metrics.last_accuracy(matrix, weights)
    if tasks > 1:  # of a single task there is nothing to forget
        measures["average incremental accuracy"] = lambda: metrics.average_incremental_accuracy(matrix, weights)
        measures["forgetting"] = lambda: metrics.forgetting(matrix)
        measures["backward transfer"] = lambda: metrics.backward_transfer(matrix)
    return {name: _or_none(measure) for name, measure in measures.items()}


def _or_none(measure: Callable[[], float]) -> float | None:
    try:
        return measure()
    except ValueError:  # a cell it needs was never measured
        return None


def _costs(record: Mapping[str, Any]) -> dict[str, Any]:
    if not record["tasks"]:
        return {}
    seconds = sum(task["seconds"] for task in record["tasks"])
    last = record["tasks"][-1]
    costs = {
        "all files of this version": size(sum(entry["bytes"] for entry in record["files"].values())),
        "learning, all tasks": f"{seconds:,.0f} s",
        "trained parameters, last task": last["trainable_parameters"],
    }
    if last["peak_memory"]:
        costs["peak memory, last task"] = size(last["peak_memory"])
    return costs | {"device, last task": f"{last['device']}, threads: {last['threads']}"}


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    parts = record["parts"]
    settings: dict[str, Any] = {"image_size": record["image_size"], "seed": record["seed"]}
    for part, values in record["settings"].items():
        if part in parts:
            settings[part] = parts[part]
        settings |= {f"{part}.{key}": value for key, value in values.items()}
    return settings


def _samples(learner: Learner, data: Any, count: int, skip_bad: bool) -> tuple[Sample, ...]:
    from sapwood.data.decode import decode
    from sapwood.data.given import read_test_data

    pictures = read_test_data(data)
    chosen = pictures.subset(spread(pictures.labels, count))
    predictions = {prediction.path: prediction for prediction in learner.predict(chosen, top=1, skip_bad=skip_bad)}
    return tuple(
        Sample(decode(picture, shorter=THUMBNAIL), found.label, found.score, picture.label, _short(picture.name))
        for picture in chosen
        if (found := predictions.get(picture.name))
    )


def _short(name: str) -> str:
    """The end of a path: a report is passed on, and what lies above is nobody's business.

    >>> _short("private/2026/birds/owl/1.jpg")
    'birds/owl/1.jpg'
    """
    return shown("/".join(Path(name).parts[-3:]))


def spread(labels: Sequence[str | None], count: int) -> list[int]:
    """Indices of at most ``count`` items, as evenly over the labels as they go, in ascending order.

    >>> spread(["cat", "cat", "cat", "dog"], 2)[-1]
    3
    """
    seen: Counter[str | None] = Counter()
    turns: list[tuple[int, int, int]] = []
    for index in np.random.default_rng(0).permutation(len(labels)).tolist():
        turns.append((seen[labels[index]], len(turns), index))
        seen[labels[index]] += 1
    return sorted(index for _, _, index in sorted(turns)[:count])
