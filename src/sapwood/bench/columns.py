"""What tables of a benchmark show: which numbers, in which unit, with which marks; plain text, laid out elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sapwood.bench.origins import OWN, states_of_code
from sapwood.bench.summary import TIMED, Gap, Line, Spread

RECONSTRUCTED, BOUND, NOTHING = "†", "‡", "–"
_MINUS = "−"


@dataclass(frozen=True)
class Measure:
    """A column of numbers: its name in ``Line.values``, its heading, and how a number is printed."""

    name: str
    heading: str
    show: Callable[[Spread], str]

    def cell(self, line: Line) -> str:
        """The line's number, or a dash."""
        value = None if self.name in TIMED and not line.timing_valid else line.values[self.name]
        return NOTHING if value is None else self.show(value)


def percent(value: Spread) -> str:
    """In percent, with the spread.

    >>> percent(Spread(0.7341, 0.012)), percent(Spread(-0.05, None))
    ('73.4 ± 1.2', '−5.0')
    """
    return _with(value, 1, 100, always=True)


def count(value: Spread) -> str:
    """A whole number.

    >>> count(Spread(298762.0, 0.0))
    '298,762'
    """
    return _with(value, 0, 1)


def mega(value: Spread) -> str:
    """In millions, three figures.

    >>> mega(Spread(1_195_048, 0.0)), mega(Spread(1_195_048, 900.0)), mega(Spread(1_195_048, 9000.0))
    ('1.20', '1.20', '1.20 ± 0.01')
    """
    return plain(Spread(value.mean / 1e6, None if value.deviation is None else value.deviation / 1e6))


def plain(value: Spread) -> str:
    """Three figures, or all before the point.

    >>> plain(Spread(1466.64, 31.7)), plain(Spread(0.04567, None))
    ('1,467 ± 32', '0.0457')
    """
    size = abs(value.mean)
    digits = 0 if not size else min(6, max(0, 2 - math.floor(math.log10(size))))
    return _with(value, digits, 1)


def score(value: Spread) -> str:
    """One digit after the point, with the spread.

    >>> score(Spread(52.318, 0.04))
    '52.3 ± 0.0'
    """
    return _with(value, 1, 1, always=True)


def _with(value: Spread, digits: int, scale: float, always: bool = False) -> str:
    """``always``: also a spread of nothing in the digits shown, which of a size or a count goes without saying."""
    spread = "" if value.deviation is None else f"{scale * value.deviation:,.{digits}f}"
    shown = f" ± {spread}" if spread and (always or spread.strip("0.")) else ""
    return f"{_number(scale * value.mean, digits)}{shown}"


def _number(value: float, digits: int) -> str:
    shown = f"{value:,.{digits}f}"
    return shown.replace("-", _MINUS) if float(shown.replace(",", "")) else shown.replace("-", "")


_COSTS = (
    Measure("trainable_parameters", "trainable parameters", count),
    Measure("bytes", "MB kept a round", mega),
    Measure("state_bytes", "MB in all", mega),
    Measure("gmacs", "GMACs", plain),
    Measure("peak_memory", "peak memory, MB", mega),
    Measure("train_seconds", "training, s", plain),
    Measure("milliseconds_per_image", "ms a picture", plain),
    Measure("netscore", "NetScore", score),
)
_FORGETTING = (Measure("forgetting", "forgetting", percent), Measure("backward_transfer", "BWT", percent))
_MEASURES = {
    "classification": (
        Measure("last_accuracy", "Last-Acc", percent),
        Measure("average_incremental_accuracy", "Inc-Acc", percent),
        *_FORGETTING,
        Measure("false_accept", "unknown taken for known", percent),
        *_COSTS,
    ),
    "segmentation": (
        Measure("miou_all", "mIoU all", percent),
        Measure("miou_old", "old", percent),
        Measure("miou_new", "new", percent),
        Measure("miou_background", "background", percent),
        Measure("average_incremental_accuracy", "Inc", percent),
        *_FORGETTING,
        *_COSTS,
    ),
}


def headings(kind: str) -> list[str]:
    """Of the columns of ``cells``; the first two are text."""
    return ["method", "weights", *(each.heading for each in _MEASURES[kind]), "gap to joint [95%]", "seeds"]


def cells(line: Line) -> list[str]:
    """A line of the table."""
    measures = _MEASURES[line.rows[0]["kind"]]
    weights = {"pretrained": "pre-trained"}.get(line.weights, line.weights)
    seeds = ", ".join(map(str, line.seeds))
    return [marked(line), weights, *(each.cell(line) for each in measures), gap(line.gap), seeds]


def marked(line: Line) -> str:
    """The method's name with its marks."""
    marks = RECONSTRUCTED * line.reconstructed + BOUND * line.upper_bound
    return f"{line.method} {marks}".rstrip()


def gap(value: Gap | None) -> str:
    """In points, with its interval.

    >>> gap(Gap(0.123, 0.1004, 0.146, (0, 1))), gap(Gap(-0.01, None, None, (0,))), gap(None)
    ('12.3 [10.0, 14.6]', '−1.0', '–')
    """
    if value is None:
        return NOTHING
    bounds = [_number(100 * bound, 1) for bound in (value.low, value.high) if bound is not None]
    return _number(100 * value.mean, 1) + (f" [{', '.join(bounds)}]" if bounds else "")


def notes(lines: Sequence[Line]) -> list[str]:
    """What the reader of the table must know; marks are explained where they occur."""
    segmentation = lines[0].rows[0]["kind"] == "segmentation"
    measured = "mIoU" if segmentation else "Last-Acc"
    found = [
        "In percent; percentage points for forgetting, BWT (backward transfer) and gap"
        + ("; mean ± standard deviation over the seeds." if any(len(line.rows) > 1 for line in lines) else ".")
    ]
    if segmentation:
        found.append("old: classes of the first round; new: those of later rounds; Inc: mean over the rounds.")
    elif any(line.values["false_accept"] for line in lines):
        found.append(
            "Unknown taken for known: test pictures of classes still to come, mean over the rounds but the last, at a "
            "limit meant to let 95 % of known pictures in."
        )
    gaps = [line.gap for line in lines if line.gap]
    if gaps:
        found.append(
            f"Gap to joint: {measured} of joint minus that of the method, same seeds and weights"
            + (
                "; paired bootstrap interval over test pictures and seeds."
                if any(each.high is not None for each in gaps)
                else "."
            )
        )
    few = [line for line in lines if line.gap and len(line.gap.seeds) < len(line.seeds)]
    if few:
        shared = ", ".join(f"{line.method}: {', '.join(map(str, line.gap.seeds if line.gap else ()))}" for line in few)
        found.append(f"Seeds that joint has too ({shared}) make up the gap.")
    solved = [line.method for line in lines if line.values["fitted_parameters"] != line.values["trainable_parameters"]]
    if any(line.values["fitted_parameters"] and line.method in solved and line.values["netscore"] for line in lines):
        found.append(
            "NetScore counts what is solved for beside what trains (`fitted_parameters`), as the classifier of a ridge "
            "head."
        )
    if any(line.reconstructed for line in lines):
        found.append(
            f"{RECONSTRUCTED} Reconstructed: the source leaves choices open, or could not be read in full; they are "
            "ours, and options of the method."
        )
    if any(line.upper_bound for line in lines):
        found.append(f"{BOUND} Upper bound: trained on the pictures of all rounds at once.")
    if any(line.random for line in lines):
        drawn = ", ".join(sorted({row["backbone"] for line in lines if line.random for row in line.rows}))
        found.append(f"random: {drawn}, weights drawn at random: what the protocol gives without any pre-training.")
    if not all(line.timing_valid for line in lines):
        found.append(
            "Timings invalid where rows ran side by side or on a cluster, were stopped and gone on with, or took over "
            "the training of a row that differs in its head alone: not shown."
        )
    for package, states in states_of_code([row for line in lines for row in line.rows]).items():
        of = "the code" if package == OWN else f"the code of {package}"
        found.append(f"The rows come from {states} states of {of} (`code` and `earlier_code` in `results.json`).")
    if any(NOTHING in cells(line) for line in lines):
        found.append(
            f"{NOTHING} Not measured, or not defined (NetScore where nothing is fitted; the gap of joint itself, and "
            "without it)."
        )
    return found
