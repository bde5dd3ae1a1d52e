"""Rows put together: one line for each method, over its seeds."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, TypeAlias
from zipfile import BadZipFile

import numpy as np

from sapwood.errors import DataError
from sapwood.functional.bootstrap import Difference, paired_difference, paired_iou_difference

Row: TypeAlias = Mapping[str, Any]

MEASURES = (
    "last_accuracy",
    "miou_all",
    "miou_old",
    "miou_new",
    "miou_background",
    "average_incremental_accuracy",
    "forgetting",
    "backward_transfer",
    "learning_accuracy",
    "intransigence",
    "false_accept",
    "trainable_parameters",
    "fitted_parameters",
    "bytes",
    "state_bytes",
    "gmacs",
    "train_gmacs",
    "pass_gmacs",
    "peak_memory",
    "train_seconds",
    "milliseconds_per_image",
    "netscore",
)
"""Numbers of a row that are averaged over seeds.

``train_gmacs``: multiply-accumulates in units of 1e9 of matrix products and convolutions in all training steps, the
teacher's among them, and in the passes over the training and validation pictures before and after them
(``pass_gmacs``: features, statistics of layers, pseudo-labels, Fisher), each taken from one batch or picture. Solving
or re-tuning a head, predictions of validation pictures, and tests do not count.

``fitted_parameters``: those that train and those that are solved for, as the classifier of a ridge head; NetScore
counts these.
"""
TIMED = frozenset({"train_seconds", "milliseconds_per_image"})
"""Those that mean nothing of rows that ran side by side or on a cluster, were gone on with or took over a training."""
JOINT = "joint"
"""The upper bound that gaps are measured to."""


@dataclass(frozen=True)
class Spread:
    """A number over seeds; ``deviation`` is the sample's (n - 1), None for one seed."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Gap:
    """How far a line's last accuracy (or mean IoU) is below that of the upper bound; negative: above it.

    Attributes:
        mean: a fraction, over ``seeds``.
        low, high: of the paired 95 % interval; None where the outcome of each picture is not known.
        seeds: those that both lines have, in the same order of classes.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Line:
    """All rows of a method with the same kind of weights.

    Attributes:
        method: as the rows call it.
        weights: ``pretrained`` or ``random``.
        reconstructed: something in it is our reading of a paper that leaves it open.
        upper_bound: it sees all pictures at once.
        control: the benchmark added it.
        timing_valid: whether every row ran alone and in one go.
        values: by name in ``MEASURES``; None unless every seed has the number.
        course: the headline measure after each round, likewise.
        gap: to the upper bound; None for upper bounds, and where there is none of the same weights and seeds.
        rows: in the order in which they came.
    """

    method: str
    weights: str
    reconstructed: bool
    upper_bound: bool
    control: bool
    timing_valid: bool
    values: Mapping[str, Spread | None]
    course: tuple[Spread | None, ...]
    gap: Gap | None
    rows: tuple[Row, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of its rows."""
        return tuple(row["seed"] for row in self.rows)

    @property
    def random(self) -> bool:
        """Whether it says what random weights would give."""
        return self.weights == "random"


def summarise(rows: Sequence[Row], folder: Path | None = None) -> tuple[Line, ...]:
    """One line a (method, weights), in the order in which they came; upper bounds last, then random weights.

    Args:
        rows: of one benchmark.
        folder: of the benchmark; ``rows/`` in it holds the files that ``counts`` name. Without it, intervals of mean
            IoUs are None.

    Raises:
        ValueError: no rows, rows of several benchmarks, or two of one (method, weights, seed).
        DataError: the outcomes of a row's pictures are missing or do not fit the row.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["weights"]), []).append(row)
    _check(rows, groups)
    bounds = {weights: _bound(groups, weights) for _, weights in groups}
    lines = [_line(method, weights, group, bounds[weights], folder) for (method, weights), group in groups.items()]
    return tuple(sorted(lines, key=_group))


def group_starts(lines: Sequence[Line]) -> list[int]:
    """Positions of the lines where upper bounds, or those with random weights, begin."""
    return [place for place in range(1, len(lines)) if _group(lines[place]) != _group(lines[place - 1])]


def _group(line: Line) -> tuple[bool, bool]:
    return line.random, line.upper_bound


def headline(row: Row, index: int) -> float | None:
    """What was measured after a round of all classes so far: accuracy, or mean IoU."""
    after = row["after_each"][index] if index < len(row["after_each"]) else {}
    return overall(after, row.get("background", "include")) if row["kind"] == "segmentation" else after.get("accuracy")


def overall(summary: Mapping[str, Any], background: str) -> float | None:
    """Mean IoU of all classes so far, with the background where it is to ``include``; None where nothing was measured.

    >>> overall({"miou": 0.5, "per_class": {"road": 0.6, "car": None}, "background": 0.4}, "exclude")
    0.6
    """
    if background == "include":
        return summary.get("miou")
    found = [value for value in summary.get("per_class", {}).values() if value is not None]
    return fmean(found) if found else None


def _check(rows: Sequence[Row], groups: Mapping[tuple[str, str], Sequence[Row]]) -> None:
    names = sorted({row["benchmark"] for row in rows})
    if len(names) != 1:
        raise ValueError(f"rows must be of one benchmark, got {', '.join(names) or 'no rows'}")
    for (method, weights), group in groups.items():
        seeds = [row["seed"] for row in group]
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{method} ({weights}) has several rows of one seed: {seeds}")
    _check_same(rows, "data_sha256", lambda row: (row["seed"], row["order_seed"]), "different pictures")
    _check_same(rows, "pictures_sha256", lambda row: None, "different pictures")
    _check_same(rows, "weights_sha256", lambda row: row["backbone"], "different weights of one name")


def _check_same(rows: Sequence[Row], key: str, of: Callable[[Row], object], what: str) -> None:
    """Refuse rows that differ in a sum; those of earlier releases may lack it."""
    known: dict[object, Row] = {}
    for row in rows:
        first = known.setdefault(of(row), row) if row.get(key) else row
        if first.get(key) != row.get(key):
            one, other = (f"{each['method']} ({each['weights']}, seed {each['seed']})" for each in (first, row))
            raise DataError(
                f"rows {one} and {other} come from {what}; remove the files of one in rows/, or name another folder"
            )


def _bound(groups: Mapping[tuple[str, str], Sequence[Row]], weights: str) -> Sequence[Row]:
    found = groups.get((JOINT, weights), ())
    return found if found and found[0]["upper_bound"] else ()


def _line(method: str, weights: str, rows: Sequence[Row], bound: Sequence[Row], folder: Path | None) -> Line:
    rounds = max(len(row["after_each"]) for row in rows)
    upper = any(row["upper_bound"] for row in rows)
    return Line(
        method=method,
        weights=weights,
        reconstructed=any(row.get("reconstructed", False) for row in rows),
        upper_bound=upper,
        control=any(row.get("control", False) for row in rows),
        timing_valid=all(row.get("timing_valid", True) for row in rows),
        values={name: _spread([row.get(name) for row in rows]) for name in MEASURES},
        course=tuple(_spread([headline(row, index) for row in rows]) for index in range(rounds)),
        gap=None if upper else _gap(rows, bound, folder),
        rows=tuple(rows),
    )


def _spread(values: Sequence[float | None]) -> Spread | None:
    numbers = [float(value) for value in values if value is not None]
    if len(numbers) < len(values):
        return None
    return Spread(fmean(numbers), stdev(numbers) if len(numbers) > 1 else None)


def _gap(rows: Sequence[Row], bound: Sequence[Row], folder: Path | None) -> Gap | None:
    above = {(row["seed"], row["order_seed"]): row for row in bound}
    pairs = [(above[key], row) for row in rows if (key := (row["seed"], row["order_seed"])) in above]
    measured = [(one["last_accuracy"], other["last_accuracy"]) for one, other in pairs]
    if not measured or any(value is None for pair in measured for value in pair):
        return None
    found = _interval(pairs, folder)
    seeds = tuple(row["seed"] for _, row in pairs)
    return Gap(fmean(one - other for one, other in measured), found and found.low, found and found.high, seeds)


def _interval(pairs: Sequence[tuple[Row, Row]], folder: Path | None) -> Difference | None:
    """The same draws for every line: seeded anew each time."""
    generator = np.random.default_rng(0)
    compare: Callable[..., Difference]
    if pairs[0][0]["kind"] == "segmentation":
        compare, outcomes = paired_iou_difference, [[_counts(row, folder) for row in pair] for pair in pairs]
        if pairs[0][0].get("background") == "exclude":  # the first channel
            outcomes = [[None if each is None else each[:, :, 1:] for each in pair] for pair in outcomes]
    else:
        compare, outcomes = paired_difference, [[correct(row) for row in pair] for pair in pairs]
    flat = [each for pair in outcomes for each in pair]
    if any(each is None or each.shape != flat[0].shape for each in flat):  # type: ignore[union-attr]
        return None
    one, other = (np.stack([pair[side] for pair in outcomes]) for side in (0, 1))  # type: ignore[misc]
    return compare(one, other, generator)


def correct(row: Row) -> np.ndarray | None:
    """Whether each test picture is right after the last round, bool [N]; None if the row does not say.

    Raises:
        DataError: it says so of another number of pictures than there are.
    """
    packed = row.get("correct")
    if packed is None:
        return None
    count = sum(row["test_pictures"])
    content = np.frombuffer(base64.b64decode(packed), np.uint8)
    if len(content) != math.ceil(count / 8):
        raise DataError(
            f"row {row['method']}, seed {row['seed']}: {count} test pictures need {math.ceil(count / 8)} bytes of "
            f"outcomes, it has {len(content)}; remove the row's file and run the benchmark again"
        )
    return np.unpackbits(content, count=count).astype(bool)


def _counts(row: Row, folder: Path | None) -> np.ndarray | None:
    if folder is None or not row.get("counts"):
        return None
    file = folder / "rows" / row["counts"]["file"]
    try:
        with np.load(file, allow_pickle=False) as content:
            found: np.ndarray = content["counts"]
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise DataError(
            f"{file}: cannot be read ({error}); remove the row's file (.json) and run the benchmark again"
        ) from error
    if found.ndim != 3 or found.shape[1] != 3 or not found.size:
        raise DataError(f"{file}: counts must be [pictures, 3, channels], got {list(found.shape)}")
    return found
