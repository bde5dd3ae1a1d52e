"""The line chart of a report as an SVG element that takes its colours from the page's style sheet."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from sapwood.report.svg import ACCENT, GRID, MUTED, element, percent, settings, ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def course_chart(
    matrix: Sequence[Sequence[float | None]],
    overall: Sequence[float | None],
    measure: str,
    label: str,
    breaks: Collection[tuple[int, int]] = (),
) -> str:
    """``<svg>`` with one thin line for the classes of each round and a thick one for those of all rounds so far.

    Args:
        matrix: fractions, [i][j] after round i on the classes of round j; None leaves a gap in the line.
        overall: a fraction or None for each round.
        measure: what the fractions are.
        label: what a screen reader says in its place; must already be escaped for HTML.
        breaks: cells (i, j) that no line joins with the one before.
    """
    import matplotlib
    from matplotlib.figure import Figure

    count = len(overall)
    steps = range(1, count + 1)
    with matplotlib.rc_context(settings()):
        figure = Figure(figsize=(5.8, 3.1), layout="constrained")
        axes = figure.subplots()
        labels: list[tuple[float, str, str]] = []
        for task in range(count):
            line = [percent(matrix[after][task]) if after >= task else float("nan") for after in range(count)]
            starts = [0, *(after for after in range(count) if (after, task) in breaks), count]
            for start, end in pairwise(starts):
                axes.plot(steps[start:end], line[start:end], color=MUTED, linewidth=0.9, marker="o", markersize=2.2)
            labels.append((line[-1], f"round {task + 1}", MUTED))
        line = [percent(value) for value in overall]
        axes.plot(steps, line, color=ACCENT, linewidth=2.4, marker="o", markersize=5)
        labels.insert(0, (line[-1], "all so far", ACCENT))
        _label_ends(axes, labels, count)
        axes.set_ylim(0, 104)
        span = max(1, count - 1)
        axes.set_xlim(1 - 0.05 * span, count + 0.17 * span)  # room for the labels at the right
        axes.set_xticks(ticks(count))
        axes.set_yticks(range(0, 101, 20))
        axes.set_xlabel("after round")
        axes.set_ylabel(f"{measure} in %")
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        return element(figure, label)


def _label_ends(axes: Axes, labels: Sequence[tuple[float, str, str]], count: int) -> None:
    """Names at the right ends of the lines, as many as fit without touching; the first ones have the right of way."""
    taken: list[float] = []
    for height, text, colour in labels:
        if height == height and all(abs(height - other) >= 6 for other in taken):
            taken.append(height)
            place: dict[str, Any] = {"xytext": (7, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(text, (count, height), color=colour, fontsize=8, **place)
