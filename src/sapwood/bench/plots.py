"""Charts of a benchmark's lines: accuracy by round, forgetting, accuracy against size, NetScore."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sapwood.bench import columns
from sapwood.bench.placing import apart, clusters, decades
from sapwood.bench.summary import Line, Spread
from sapwood.bench.theme import ACCENT, GRID, INK, MUTED, PAGE, SERIES
from sapwood.report.svg import element, settings, ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 7.2  # inches
_ROW = 0.2  # inches of a line's name
_MARKERS, _DASHES = "osD^vPX", ((), (5, 2), (1, 1.5), (6, 2, 1, 2))


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        name: of its file, without the ending.
        title: what it shows.
        png: on white.
        svg: an element for the page, in the colours of its style sheet.
    """

    name: str
    title: str
    png: bytes
    svg: str


def charts(lines: Sequence[Line]) -> list[Chart]:
    """The charts; those for which nothing was measured are left out."""
    import matplotlib
    from matplotlib.figure import Figure

    measure = "mean IoU" if lines[0].rows[0]["kind"] == "segmentation" else "accuracy"
    wanted: tuple[tuple[str, str, Callable[[Axes, Sequence[Line], str], bool], int], ...] = (
        ("after-each-round", f"{measure[0].upper()}{measure[1:]} on all classes so far, after each round", _course, 10),
        ("forgetting", "Forgetting, less is better", _forgetting, 0),
        ("trainable-parameters", f"Last {measure} against trainable parameters", _size, 10),
        ("netscore", "NetScore, more is better", _netscore, 0),
    )
    found = []
    # Names of methods are not formulas, whatever dollar signs they hold.
    with matplotlib.rc_context(settings(INK, GRID) | {"text.parse_math": False}):
        for name, title, draw, least in wanted:
            figure = Figure(figsize=(_WIDTH, 1.1 + _ROW * max(least, len(lines))), layout="constrained")
            if draw(figure.subplots(), lines, measure):
                svg = element(figure, f"{title}; the table has the numbers", colours=PAGE, prefix=name)
                found.append(Chart(name, title, _png(figure), svg))
    return found


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return stream.getvalue()


def label(line: Line) -> str:
    """A line's name in a chart."""
    return columns.marked(line) + (", random weights" if line.random else "")


def _look(line: Line, place: int, lines: Sequence[Line]) -> tuple[str, dict[str, Any]]:
    """Colour, and how the line is drawn: bounds in ink, random weights beside others muted, the rest in turn."""
    if line.random and not all(each.random for each in lines):
        return MUTED, {"dashes": (1, 2), "marker": "."}
    if line.upper_bound:
        return INK, {"dashes": (4, 2), "marker": "*"}
    dashes = _DASHES[place // len(SERIES) % len(_DASHES)]
    style: dict[str, Any] = {"marker": _MARKERS[place % len(_MARKERS)]}
    return SERIES[place % len(SERIES)], style | ({"dashes": dashes} if dashes else {})


def _course(axes: Axes, lines: Sequence[Line], measure: str) -> bool:
    count = max(len(line.course) for line in lines)
    steps = list(range(1, count + 1))
    ends: list[tuple[float, float, str, str]] = []
    lowest = 100.0
    for place, line in enumerate(lines):
        colour, style = _look(line, place, lines)
        means = [_percent(value) for value in line.course] + [float("nan")] * (count - len(line.course))
        axes.plot(steps, means, color=colour, linewidth=1.6, markersize=4, **style)
        shown = [
            (step, 100 * v.mean, 100 * (v.deviation or 0)) for step, v in zip(steps, line.course, strict=False) if v
        ]
        if not shown:
            continue
        xs, middle, spread = (list(each) for each in zip(*shown, strict=True))
        low = [mean - off for mean, off in zip(middle, spread, strict=True)]
        if any(spread):
            high = [mean + off for mean, off in zip(middle, spread, strict=True)]
            axes.fill_between(xs, low, high, color=colour, alpha=0.14 if len(lines) < 8 else 0.07, linewidth=0)
        lowest = min(lowest, *low)
        ends.append((xs[-1], middle[-1], label(line), colour))
    if not ends:
        return False
    bottom = min(90.0, max(0.0, lowest // 10 * 10))
    axes.set_ylim(bottom, 100 + 0.03 * (100 - bottom))
    span = max(1, count - 1)
    axes.set_xlim(1 - 0.05 * span, count + 0.05 * span)
    _name_points(axes, ends, at=count + 0.1 * span)
    axes.set_xticks(ticks(count))
    axes.set_xlabel("after round")
    axes.set_ylabel(f"{measure} in %")
    _grid(axes, "y")
    return True


def _percent(value: Spread | None) -> float:
    return float("nan") if value is None else 100 * value.mean


def _name_points(axes: Axes, points: Sequence[tuple[float, float, str, str]], at: float) -> None:
    """Names right of points (x, y, name, colour), none over another; a thin line leads to a name that had to move."""
    bottom, top = axes.get_ylim()
    figure = axes.figure
    room = (figure.get_size_inches()[1] - 0.8) / _ROW  # type: ignore[union-attr]
    heights = apart([height for _, height, _, _ in points], (top - bottom) / room * 0.85, bottom, top)
    for (x, y, name, colour), height in zip(points, heights, strict=True):
        moved = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3, "relpos": (0, 0.5)}
        axes.annotate(
            name,
            (x, y),
            xytext=(at, height),
            color=colour,
            fontsize=8,
            va="center",
            annotation_clip=False,
            arrowprops=moved,
        )


def _forgetting(axes: Axes, lines: Sequence[Line], measure: str) -> bool:
    return _bars(axes, lines, [line.values["forgetting"] for line in lines], 100, "forgetting in points")


def _netscore(axes: Axes, lines: Sequence[Line], measure: str) -> bool:
    return _bars(axes, lines, [line.values["netscore"] for line in lines], 1, "NetScore")


def _bars(axes: Axes, lines: Sequence[Line], values: Sequence[Spread | None], scale: float, title: str) -> bool:
    if all(value is None for value in values):
        return False
    for place, (line, value) in enumerate(zip(lines, values, strict=True)):
        mean, spread = (scale * value.mean, scale * (value.deviation or 0)) if value else (0.0, 0.0)
        colour = MUTED if line.random or line.upper_bound else ACCENT
        axes.barh(place, mean, height=0.62, color=colour, alpha=0.85)
        if spread:
            axes.errorbar(mean, place, xerr=spread, color=INK, linewidth=1, capsize=2.5)
        shown = (
            "not defined"
            if value is None
            else columns.score(Spread(mean, spread if value.deviation is not None else None))
        )
        end = max(0.0, mean + spread)
        axes.annotate(shown, (end, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(lines)), labels=[label(line) for line in lines])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(lines) - 0.4, -0.6)  # the first line on top
    left, right = axes.get_xlim()
    axes.set_xlim(left, right + 0.16 * (right - left))
    axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.set_xlabel(title)
    _grid(axes, "x")
    return True


@dataclass(frozen=True)
class _Point:
    x: float
    y: float
    spread: float
    name: str
    colour: str
    marker: str


def _size(axes: Axes, lines: Sequence[Line], measure: str) -> bool:
    points: list[_Point] = []
    for place, line in enumerate(lines):
        size, score = line.values["trainable_parameters"], line.values["last_accuracy"]
        if size is not None and score is not None:
            colour, style = _look(line, place, lines)
            points.append(
                _Point(size.mean, 100 * score.mean, 100 * (score.deviation or 0), label(line), colour, style["marker"])
            )
    if not points:
        return False
    marks, nothing = decades([point.x for point in points])
    axes.set_xscale("log")
    axes.set_xticks([at for at, _ in marks], labels=[name for _, name in marks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(marks[0][0] / 2, marks[-1][0] * 2)
    if any(point.x == 0 for point in points) and len(marks) > 1:
        axes.axvline(nothing * 3, color=GRID, linewidth=0.8)  # left of it the axis is broken
    points = [replace(point, x=point.x or nothing) for point in points]
    for point in points:
        drawn: dict[str, Any] = {"color": point.colour, "marker": point.marker, "markersize": 6, "capsize": 2.5}
        axes.errorbar(point.x, point.y, yerr=point.spread or None, **drawn)
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(0.0, bottom - 2), min(102.0, top + 2))
    for group in clusters([point.x for point in points], factor=3):
        right = max(points[index].x for index in group)
        members = [(points[index].x, points[index].y, points[index].name, points[index].colour) for index in group]
        _name_points(axes, members, at=right * 1.25)
    axes.set_xlabel("trainable parameters")
    axes.set_ylabel(f"last {measure} in %")
    _grid(axes, "y")
    return True


def _grid(axes: Axes, axis: Any) -> None:
    axes.grid(axis=axis, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
