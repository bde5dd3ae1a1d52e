"""From a learner to the data of its report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sapwood.data.legend import BACKGROUND
from sapwood.data.masks import MaskedPictures
from sapwood.functional import metrics
from sapwood.progress import Progress
from sapwood.report.content import ReportData, ReportTask
from sapwood.report.markup import duration, size
from sapwood.report.routes import read_routes
from sapwood.report.samples import draw_samples, name_samples, read_samples

if TYPE_CHECKING:
    from sapwood.learner import Learner

_NUMBERS = {
    "classification": ("last accuracy", "average incremental accuracy", "forgetting", "backward transfer"),
    "segmentation": ("last mean IoU", "average over the rounds", "forgetting", "backward transfer"),
}
_REMARK = (
    "IoU: intersection over union of the true and the predicted pixels of a class. The means are over the classes of "
    "the rounds; the background is none of them unless said so."
)


def gather(
    learner: Learner,
    data: Any = None,
    *,
    samples: int | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> ReportData:
    """What the current version has to report.

    Args:
        learner: open on the version that is reported.
        data: labelled pictures (class folder, CSV, ...) or pictures with masks, from which ``samples`` are shown with
            their predictions; None: no pictures, since the state keeps none.
        samples: how many, the same ones every time; by default 24, spread over the classes, and of masks 12.
        skip_bad: leave unreadable pictures out, else they are an error.
        progress: listens to what happens.

    Raises:
        UsageError: the data cannot be read, or are not of the kind that the learner learns.
    """
    version = learner.state.version
    record = version.record
    masks = record["kind"] == "segmentation"
    pairs = zip(record["tasks"], record["accuracy_on"], strict=True)
    tasks = tuple(_task(task, masks, source, record["files"]) for task, source in pairs)
    measured = record["tasks"][-1].get("measured", {}) if tasks else {}
    numbers = _numbers(_NUMBERS[record["kind"]], _tested(record), [len(task.classes) for task in tasks])
    if "miou" in measured:
        numbers["with the background"] = measured["miou"]
    shown: dict[str, Any] = {}
    if data is not None:
        pictures = read_samples(learner, data)
        rest = (samples, skip_bad, progress or Progress())
        if isinstance(pictures, MaskedPictures):
            shown["masks"] = draw_samples(learner, pictures, *rest)
        else:
            shown["samples"] = name_samples(learner, pictures, *rest)
    return ReportData(
        title=learner.state.path.resolve().name,
        version=version.id,
        method=record["method"],
        backbone=record["backbone"]["name"],
        created=record["created"].replace("T", " ").replace("+00:00", " UTC"),
        classes=tuple(name for name in learner.classes_ if not (masks and name == BACKGROUND)),
        tasks=tasks,
        measure=f"mean {learner.kind.measure}" if masks else learner.kind.measure,
        accuracy=tuple(tuple(row) for row in learner.accuracy_),
        numbers=numbers,
        remark=_REMARK if masks else "",
        per_class=measured.get("per_class", {}),
        means=_means(measured),
        **shown,
        routes=read_routes(learner.state),
        costs=_costs(record),
        settings=_settings(record),
    )


def _task(task: Mapping[str, Any], masks: bool, source: str, files: Mapping[str, Mapping[str, Any]]) -> ReportTask:
    stored = sum(entry["bytes"] for name, entry in files.items() if name.startswith(task["folder"] + "/"))
    classes = task["classes"] if masks else task["annotated"]
    return ReportTask(
        name=task["name"],
        classes=tuple(classes),
        images=task["images"],
        seconds=task["seconds"],
        trainable_parameters=task["trainable_parameters"],
        bytes=stored,
        measured_on="validation" if source == "validation" else "test",
        again=tuple(name for name in task["annotated"] if name not in classes),
        peak_memory=task["peak_memory"] or None,
        seconds_per_picture=task.get("seconds_per_picture"),
    )


def _tested(record: Mapping[str, Any]) -> list[list[float | None]]:
    """The matrix without rows of validation pictures: a difference of two kinds of pictures measures nothing."""
    rows = zip(record["accuracy"], record["accuracy_on"], strict=True)
    return [list(row) if source == "test" else [None] * len(row) for row, source in rows]


def _numbers(
    names: Sequence[str], rows: Sequence[Sequence[float | None]], weights: Sequence[int]
) -> dict[str, float | None]:
    """The field's measures as far as the cells they need were measured."""
    matrix, weights = _continued(rows, weights)
    measures: list[Callable[[], float]] = []
    if matrix:
        measures.append(lambda: metrics.last_accuracy(matrix, weights))
    if len(matrix) > 1:  # of a single round there is nothing to forget
        measures += [
            lambda: metrics.average_incremental_accuracy(matrix, weights),
            lambda: metrics.forgetting(matrix),
            lambda: metrics.backward_transfer(matrix),
        ]
    return {name: _or_none(measure) for name, measure in zip(names, measures, strict=False)}


def _continued(
    rows: Sequence[Sequence[float | None]], weights: Sequence[int]
) -> tuple[list[list[float | None]], list[int]]:
    """Matrix and weights of the rounds that brought classes; one that brought none continues the one before it.

    >>> _continued([[0.9], [0.5, None], [0.4, None, 0.8]], [2, 0, 1])
    ([[0.5, None], [0.4, 0.8]], [2, 1])
    """
    starts = [index for index, weight in enumerate(weights) if weight]
    full = [[*row, *[None] * (len(rows) - len(row))] for row in rows]
    ends = [start - 1 for start in starts[1:]] + [len(rows) - 1]
    return [[full[end][start] for start in starts] for end in ends if starts], [weights[start] for start in starts]


def _or_none(measure: Callable[[], float]) -> float | None:
    try:
        return measure()
    except ValueError:  # a cell it needs was never measured
        return None


def _means(measured: Mapping[str, Any]) -> dict[str, float | None]:
    names = {"miou": "all, with the background", "old": "first round", "new": "later rounds", "background": BACKGROUND}
    return {name: measured[key] for key, name in names.items() if key in measured}


def _costs(record: Mapping[str, Any]) -> dict[str, Any]:
    if not record["tasks"]:
        return {}
    last = record["tasks"][-1]
    costs = {
        "stored, all files of this version": size(sum(entry["bytes"] for entry in record["files"].values())),
        "learning, all rounds": duration(sum(task["seconds"] for task in record["tasks"])),
        "trained parameters, last round": last["trainable_parameters"],
    }
    if last["peak_memory"]:
        costs["peak memory, last round"] = size(last["peak_memory"])
    if last.get("seconds_per_picture"):
        costs["predicting a picture, after the last round"] = duration(last["seconds_per_picture"])
    return costs | {"device, last round": f"{last['device']}, threads: {last['threads']}"}


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    parts = record["parts"]
    sides = record["image_size"]
    side = "x".join(map(str, sides)) if isinstance(sides, list) else sides
    settings: dict[str, Any] = {"image_size": side, "seed": record["seed"]}
    for part, values in record["settings"].items():
        if part in parts:
            settings[part] = parts[part]
        settings |= {f"{part}.{key}": value for key, value in values.items()}
    return settings
