"""What a report says, as plain data; whoever has a state fills it in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from sapwood.settings import check


@dataclass(frozen=True)
class ReportTask:
    """One round of learning.

    Attributes:
        name: as the user gave it.
        classes: names of the classes that its cells of the matrix are about: those that had pictures in this round; of
            masks those that this round brought, the background left out.
        images: training pictures, those held out for validation included.
        seconds: wall-clock time of the round; None if it was not recorded.
        trainable_parameters: numbers fitted in this round.
        bytes: size of the round's files.
        measured_on: where the row of the matrix after this round comes from: ``test``, ``validation`` or ``probe``.
        again: classes known before of which there were more masks.
        peak_memory: bytes, None if not recorded.
        seconds_per_picture: of a prediction after this round, None if not recorded.
    """

    name: str
    classes: tuple[str, ...]
    images: int
    seconds: float | None
    trainable_parameters: int
    bytes: int
    measured_on: str = "test"
    again: tuple[str, ...] = ()
    peak_memory: int | None = None
    seconds_per_picture: float | None = None


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
        check(
            _is_picture(self.image),
            (0 <= self.score <= 1, f"a sample's score must be in 0..1, got {self.score}"),
        )


@dataclass(frozen=True, eq=False)
class MaskSample:
    """One picture with its mask and what the model draws, all of one size: that at which they are shown.

    Attributes:
        image: uint8 [H, W, 3] RGB.
        truth: uint8 [H, W]: 0 for the background, c for the report's class c - 1, 255 for pixels that do not count.
        predicted: uint8 [H, W], likewise.
        right: fraction of the pixels that count whose class is right; None if no pixel counts.
        name: shown below the picture, its path for instance.
    """

    image: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    right: float | None = None
    name: str = ""

    def __post_init__(self) -> None:
        masks = {"truth": self.truth, "predicted": self.predicted}
        check(
            _is_picture(self.image),
            *(
                (
                    mask.dtype == np.uint8 and mask.shape == self.image.shape[:2],
                    f"a sample's {name} must be uint8 of its image's size, got {mask.dtype} {list(mask.shape)}",
                )
                for name, mask in masks.items()
            ),
            (self.right is None or 0 <= self.right <= 1, f"what is right must be in 0..1, got {self.right}"),
        )


@dataclass(frozen=True, eq=False)
class SiteRoute:
    """The routing matrices of a site after the last round that changed them.

    Attributes:
        site: its name, ``block.3.q``.
        old: [r, r], of all rounds, the last one included.
        delta: [r, r], what that round added.
    """

    site: str
    old: np.ndarray
    delta: np.ndarray

    def __post_init__(self) -> None:
        shape = self.old.shape
        check(
            (len(shape) == 2 and shape[0] == shape[1] >= 1, f"a route must be [r, r], got {list(shape)}"),
            (self.delta.shape == shape, f"delta must be {list(shape)} as its route, got {list(self.delta.shape)}"),
        )


@dataclass(frozen=True)
class Routes:
    """C-LoRA's routes.

    Attributes:
        sites: in the order of the network.
        overlaps: for each round, of each site the share of the new route that runs in the protected directions of the
            old one, 0..1; None for a round without an older route, or in which the adapter did not learn.
    """

    sites: tuple[SiteRoute, ...]
    overlaps: tuple[tuple[float, ...] | None, ...]

    def __post_init__(self) -> None:
        measured = [row for row in self.overlaps if row is not None]
        check(
            (
                all(len(row) == len(self.sites) for row in measured),
                f"overlaps must have one value a site ({len(self.sites)}), got {[len(row) for row in measured]}",
            ),
            (all(0 <= value <= 1 for row in measured for value in row), f"overlaps must be in 0..1, got {measured}"),
        )


def _is_picture(image: np.ndarray) -> tuple[bool, str]:
    fits = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size > 0
    return fits, f"a sample's image must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}"


@dataclass(frozen=True)
class ReportData:
    """Everything that one report shows.

    Attributes:
        title: heading of the page.
        version: id of the state's version.
        method, backbone: by name.
        created: when the version was made, as it shall be printed.
        classes: all classes in learning order; of masks without the background.
        tasks: in learning order.
        measure: what the cells of the matrix are.
        accuracy: cell [i][j] is the measure on task j's classes after learning task i, a fraction; None (or NaN) if it
            was never measured. One row a task; a row that ends early was not measured beyond its end.
        after_each: the measure over all tasks so far, after each task. Without it, it is the mean of the row up to
            the diagonal, tasks weighted by their number of classes; None where one of those cells is missing.
        numbers: named fractions (last accuracy, forgetting, ...); None if it cannot be said.
        remark: a sentence on the numbers.
        per_class: fraction of each class after the last task, in the order in which they are shown; None for classes
            that were not among the tests. Empty: nothing is shown.
        means: named means of ``per_class``, shown with it.
        counts: pictures, or pixels in the masks, of each class that ``per_class`` was measured on.
        counted: which of the two: ``pictures`` or ``pixels``.
        before: as ``per_class``, after the round ``before_round``. Empty: no change is shown.
        counts_before: as ``counts``, after that round.
        before_round: name of the nearest earlier round that was measured too.
        samples: pictures with their predictions.
        masks: pictures with their masks, the true and the predicted ones.
        routes: of a state whose adapter has them, else None.
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
    measure: str = "accuracy"
    accuracy: tuple[tuple[float | None, ...], ...] = ()
    after_each: tuple[float | None, ...] | None = None
    numbers: Mapping[str, float | None] = field(default_factory=dict)
    remark: str = ""
    breaks: tuple[tuple[int, int], ...] = ()
    per_class: Mapping[str, float | None] = field(default_factory=dict)
    means: Mapping[str, float | None] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    counted: Literal["pictures", "pixels"] = "pictures"
    before: Mapping[str, float | None] = field(default_factory=dict)
    counts_before: Mapping[str, int] = field(default_factory=dict)
    before_round: str = ""
    samples: tuple[Sample, ...] = ()
    masks: tuple[MaskSample, ...] = ()
    routes: Routes | None = None
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
                f"the matrix of {tasks} tasks must have {tasks} rows of at most {tasks} cells, "
                f"got {len(matrix)} rows of {' or '.join(map(str, widths)) or 'none'}",
            ),
            (all(0 <= cell <= 1 for cell in cells), f"cells of the matrix must be fractions in 0..1, got {cells}"),
            (
                self.after_each is None or len(self.after_each) == tasks,
                f"after_each must have one value a task ({tasks}), got {len(self.after_each or ())}",
            ),
            (
                self.routes is None or len(self.routes.overlaps) == tasks,
                f"routes must have overlaps of {tasks} tasks, got {len(self.routes.overlaps) if self.routes else 0}",
            ),
        )
        if self.after_each is None and len(matrix) == tasks:
            rounds = [seen(self.tasks[: last + 1], row) for last, row in enumerate(matrix)]
            object.__setattr__(self, "after_each", tuple(rounds))


def seen(tasks: Sequence[ReportTask], row: Sequence[float | None]) -> float | None:
    """Mean of a row's cells over all rounds so far, weighted by their classes; None where a cell is missing."""
    cells = [(cell, len(task.classes)) for task, cell in zip(tasks, row, strict=False) if task.classes]
    if not cells or any(cell is None for cell, _ in cells):
        return None
    return sum((cell or 0.0) * weight for cell, weight in cells) / sum(weight for _, weight in cells)


def _measured(cell: float | None) -> float | None:
    return None if cell is None or math.isnan(cell) else cell
