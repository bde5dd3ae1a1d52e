"""A state's history: what was learned round by round, how well, and what it took.

The report and the server's page both draw from here, so that they say the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from sapwood.functional import metrics
from sapwood.kinds import KINDS
from sapwood.record import breaks, compares, matrix_remarks, measured_pictures
from sapwood.report.content import ReportTask, seen
from sapwood.report.markup import amount, duration, size

_NUMBERS = {
    "classification": ("last accuracy", "average incremental accuracy", "forgetting", "backward transfer"),
    "segmentation": ("last mean IoU", "average over the rounds", "forgetting", "backward transfer"),
}
_REMARK = (
    "IoU: intersection over union of the true and the predicted pixels of a class. The means are over the classes of "
    "the rounds; the background is none of them unless said so."
)


@dataclass(frozen=True)
class History:
    """The rounds of a version.

    Attributes:
        measure: what the cells of the matrix are.
        tasks: the rounds in learning order.
        accuracy: cell [i][j] is the measure on round j's classes after round i, a fraction; None if never measured.
        after_each: the measure over all classes so far, after each round.
        numbers: named fractions (last accuracy, forgetting, ...); None if it cannot be said.
        remark: a sentence on the numbers.
        breaks: cells of ``accuracy`` that were measured on other pictures than the cell above them.
        costs: what learning and predicting took, ``name -> value``, numbers or text with its unit.
    """

    measure: str
    tasks: tuple[ReportTask, ...] = ()
    accuracy: tuple[tuple[float | None, ...], ...] = ()
    after_each: tuple[float | None, ...] = ()
    numbers: Mapping[str, float | None] = field(default_factory=dict)
    remark: str = ""
    breaks: tuple[tuple[int, int], ...] = ()
    costs: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON has it; ``accuracy`` is square."""
        rounds = len(self.tasks)
        rows = [[*row, *[None] * (rounds - len(row))] for row in self.accuracy]
        return {
            "measure": self.measure,
            "rounds": [asdict(task) for task in self.tasks],
            "accuracy": rows,
            "after_each": list(self.after_each),
            "numbers": dict(self.numbers),
            "remark": self.remark,
            "breaks": self.breaks,
            "costs": {name: amount(value) for name, value in self.costs.items()},
        }


def read_history(record: Mapping[str, Any]) -> History:
    """The history that a version's record tells; no file is read."""
    masks = record["kind"] == "segmentation"
    pairs = zip(record["tasks"], record["accuracy_on"], strict=True)
    tasks = tuple(_task(task, masks, source, record["files"]) for task, source in pairs)
    numbers = _numbers(record, tasks)
    if tasks and "miou" in (measured := record["tasks"][-1].get("measured", {})):
        numbers["with the background"] = measured["miou"]
    measure = KINDS[record["kind"]].measure
    return History(
        measure=f"mean {measure}" if masks else measure,
        tasks=tasks,
        accuracy=tuple(tuple(row) for row in record["accuracy"]),
        after_each=tuple(_over_all(record, tasks, record["accuracy"])),
        numbers=numbers,
        remark=" ".join([*([_REMARK] if masks else []), *matrix_remarks(record)]),
        breaks=breaks(record),
        costs=_costs(record),
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
        measured_on=source,
        again=tuple(name for name in task["annotated"] if name not in classes),
        peak_memory=task["peak_memory"] or None,
        seconds_per_picture=task.get("seconds_per_picture"),
    )


def _tested(record: Mapping[str, Any]) -> list[list[float | None]]:
    """The matrix with the rows of one kind of pictures, that of the last row that is not of validation pictures.

    A difference of two kinds of pictures measures nothing.
    """
    kind = next((source for source in reversed(record["accuracy_on"]) if source != "validation"), "test")
    rows = zip(record["accuracy"], record["accuracy_on"], strict=True)
    return [list(row) if source == kind else [None] * len(row) for row, source in rows]


def _over_all(
    record: Mapping[str, Any], tasks: Sequence[ReportTask], rows: Sequence[Sequence[float | None]]
) -> list[float | None]:
    """The measure over all classes so far after each round: each class counts once, in however many rounds it came."""
    found = []
    for last, row in enumerate(rows):
        taught = Counter(name for task in tasks[: last + 1] for name in task.classes)
        if max(taught.values(), default=1) == 1:
            found.append(seen(tasks[: last + 1], row))
            continue
        per_class = record["tasks"][last].get("measured", {}).get("per_class", {})
        whole = taught.keys() <= per_class.keys() and any(cell is not None for cell in row)
        found.append(fmean(per_class[name] for name in taught) if whole else None)
    return found


def _numbers(record: Mapping[str, Any], tasks: Sequence[ReportTask]) -> dict[str, float | None]:
    """The field's measures as far as the cells they need were measured; falls, where that was on the same pictures."""
    rows, names, sizes = _tested(record), _NUMBERS[record["kind"]], [len(task.classes) for task in tasks]
    starts = [index for index, size in enumerate(sizes) if size]
    pictures = measured_pictures(record)
    same = [
        [cell if compares(pictures, after, on) else None for on, cell in enumerate(row)]
        for after, row in enumerate(rows)
    ]
    fallen, overall = _continued(same, starts), _over_all(record, tasks, rows)
    measures: list[Callable[[], float]] = []
    if starts:
        measures.append(lambda: _mean(overall[-1:]))
    if len(starts) > 1:  # of a single round there is nothing to forget
        measures += [
            lambda: _mean([overall[end] for end in _ends(starts, len(rows))]),
            lambda: metrics.forgetting(fallen),
            lambda: metrics.backward_transfer(fallen),
        ]
    return {name: _or_none(measure) for name, measure in zip(names, measures, strict=False)}


def _continued(rows: Sequence[Sequence[float | None]], starts: Sequence[int]) -> list[list[float | None]]:
    """The matrix of the rounds that brought classes; one that brought none continues the one before it.

    >>> _continued([[0.9], [0.5, None], [0.4, None, 0.8]], [0, 2])
    [[0.5, None], [0.4, 0.8]]
    """
    full = [[*row, *[None] * (len(rows) - len(row))] for row in rows]
    return [[full[end][start] for start in starts] for end in _ends(starts, len(rows))]


def _ends(starts: Sequence[int], count: int) -> list[int]:
    return [start - 1 for start in starts[1:]] + [count - 1]


def _mean(values: Sequence[float | None]) -> float:
    if None in values:
        raise ValueError("not all were measured")
    return fmean(value for value in values if value is not None)


def _or_none(measure: Callable[[], float]) -> float | None:
    try:
        return measure()
    except ValueError:  # a cell it needs was never measured
        return None


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
