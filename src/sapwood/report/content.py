"""What a report says, as plain data; whoever has a state fills it in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from sapwood.functional.metrics import last_accuracy
from sapwood.settings import check


@dataclass(frozen=True)
class ReportTask:
    """One round of learning.

    Attributes:
        name: as the user gave it.
        classes: names of the classes that had pictures in this round.
        images: training pictures, those held out for validation included.
        seconds: wall-clock time of the round; None if it was not recorded.
        trainable_parameters: numbers fitted in this round.
        bytes: size of the task's files.
        measured_on: where the row of the accuracy matrix after this round comes from.
    """

    name: str
    classes: tuple[str, ...]
    images: int
    seconds: float | None
    trainable_parameters: int
    bytes: int
    measured_on: Literal["test", "validation"] = "test"


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture with what the model says it is.

    Attributes:
        image: uint8 [H, W, 3] RGB.
        predicted: name of the class.
        score: its probability, 0 to 1.
        true: name of the class it is, None if that is not known.
        name: shown below the picture, its path for instance.
    """

    image: np.ndarray
    predicted: str
    score: float
    true: str | None = None
    name: str = ""

    def __post_init__(self) -> None:
        form = f"{self.image.dtype} {list(self.image.shape)}"
        check(
            (
                self.image.dtype == np.uint8
                and self.image.ndim == 3
                and self.image.shape[2] == 3
                and self.image.size > 0,
                f"a sample's image must be uint8 [H, W, 3], got {form}",
            ),
            (0 <= self.score <= 1, f"a sample's score must be in 0..1, got {self.score}"),
        )


@dataclass(frozen=True)
class ReportData:
    """Everything that one report shows.

    Attributes:
        title: heading of the page.
        version: id of the state's version.
        method, backbone: by name.
        created: when the version was made, as it shall be printed.
        classes: all classes, in learning order.
        tasks: in learning order.
        accuracy: cell [i][j] is the accuracy on task j after learning task i, a fraction; None (or NaN) if it was
            never measured. One row a task; a row that ends early was not measured beyond its end.
        after_each: accuracy over all tasks so far, after each task. Without it, it is the mean of the row up to
            the diagonal, tasks weighted by their number of classes; None where one of those cells is missing.
        numbers: named fractions (last accuracy, forgetting, ...); None if it cannot be said.
        samples: pictures with their predictions.
        costs: what to show as ``name -> value``, numbers or text with its unit.
        settings: dotted key -> value.
    """

    title: str
    version: str
    method: str
    backbone: str
    created: str
    classes: tuple[str, ...] = ()
    tasks: tuple[ReportTask, ...] = ()
    accuracy: tuple[tuple[float | None, ...], ...] = ()
    after_each: tuple[float | None, ...] | None = None
    numbers: Mapping[str, float | None] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    costs: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tasks = len(self.tasks)
        matrix = tuple((*map(_measured, row), *[None] * (tasks - len(row))) for row in self.accuracy)
        object.__setattr__(self, "accuracy", matrix)
        cells = [cell for row in matrix for cell in row if cell is not None]
        widths = sorted({len(row) for row in matrix})
        check(
            (
                len(matrix) == tasks and all(width == tasks for width in widths),
                f"the accuracy of {tasks} tasks must have {tasks} rows of at most {tasks} cells, "
                f"got {len(matrix)} rows of {' or '.join(map(str, widths)) or 'none'}",
            ),
            (all(0 <= cell <= 1 for cell in cells), f"accuracies must be fractions in 0..1, got {cells}"),
            (
                self.after_each is None or len(self.after_each) == tasks,
                f"after_each must have one value a task ({tasks}), got {len(self.after_each or ())}",
            ),
        )
        if self.after_each is None and len(matrix) == tasks:
            object.__setattr__(self, "after_each", tuple(map(self._seen, range(tasks))))

    def _seen(self, last: int) -> float | None:
        weights = [len(task.classes) for task in self.tasks[: last + 1]]
        if None in self.accuracy[last][: last + 1] or not sum(weights):
            return None
        return last_accuracy([row[: last + 1] for row in self.accuracy[: last + 1]], weights)


def _measured(cell: float | None) -> float | None:
    return None if cell is None or math.isnan(cell) else cell
