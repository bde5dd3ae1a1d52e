"""The line chart of a report as an SVG element that takes its colours from the page's style sheet."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# matplotlib wants real colours; these stand for the page's and are replaced by them, so that dark mode works.
_INK, _MUTED, _ACCENT, _GRID = "#0a0b0c", "#1a1b1c", "#2a2b2c", "#3a3b3c"
_COLOURS = {_INK: "var(--ink)", _MUTED: "var(--muted)", _ACCENT: "var(--accent)", _GRID: "var(--line)"}

_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be selected, and takes the page's font
    "svg.hashsalt": "sapwood",  # ids that do not change from run to run
    "font.family": "DejaVu Sans",  # comes with matplotlib, so the layout is the same everywhere
    "font.size": 9,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "text.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def course_chart(
    matrix: Sequence[Sequence[float | None]], overall: Sequence[float | None], measure: str, label: str
) -> str:
    """``<svg>`` with one thin line for the classes of each round and a thick one for those of all rounds so far.

    Args:
        matrix: fractions, [i][j] after round i on the classes of round j; None leaves a gap in the line.
        overall: a fraction or None for each round.
        measure: what the fractions are.
        label: what a screen reader says in its place; must already be escaped for HTML.
    """
    import matplotlib
    from matplotlib.figure import Figure

    count = len(overall)
    steps = range(1, count + 1)
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(5.8, 3.1), layout="constrained")
        axes = figure.subplots()
        labels: list[tuple[float, str, str]] = []
        for task in range(count):
            line = [_percent(matrix[after][task]) if after >= task else float("nan") for after in range(count)]
            axes.plot(steps, line, color=_MUTED, linewidth=0.9, marker="o", markersize=2.2)
            labels.append((line[-1], f"round {task + 1}", _MUTED))
        line = [_percent(value) for value in overall]
        axes.plot(steps, line, color=_ACCENT, linewidth=2.4, marker="o", markersize=5)
        labels.insert(0, (line[-1], "all so far", _ACCENT))
        _label_ends(axes, labels, count)
        axes.set_ylim(0, 104)
        span = max(1, count - 1)
        axes.set_xlim(1 - 0.05 * span, count + 0.17 * span)  # room for the labels at the right
        axes.set_xticks(_ticks(count))
        axes.set_yticks(range(0, 101, 20))
        axes.set_xlabel("after round")
        axes.set_ylabel(f"{measure} in %")
        axes.grid(axis="y", color=_GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        stream = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    return _inline(stream.getvalue(), label)


def _percent(value: float | None) -> float:
    return float("nan") if value is None else 100 * value


def _ticks(count: int) -> list[int]:
    step = max(1, -(-count // 12))
    return list(range(1, count + 1, step))


def _label_ends(axes: Axes, labels: Sequence[tuple[float, str, str]], count: int) -> None:
    """Names at the right ends of the lines, as many as fit without touching; the first ones have the right of way."""
    taken: list[float] = []
    for height, text, colour in labels:
        if height == height and all(abs(height - other) >= 6 for other in taken):
            taken.append(height)
            place: dict[str, Any] = {"xytext": (7, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(text, (count, height), color=colour, fontsize=8, **place)


def _inline(svg: str, label: str) -> str:
    """A stand-alone SVG file as an element of an HTML page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)  # would reach the whole page
    element = f'<svg class="chart" \\1 role="img" aria-label="{label}">'
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', element, svg, count=1)
    svg = re.sub(r"'?DejaVu Sans'?", "var(--font)", svg)
    for placeholder, colour in _COLOURS.items():
        svg = svg.replace(placeholder, colour)
    return svg.strip()
