"""Charts as SVG elements that take their colours from the page's style sheet, so that dark mode works."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# matplotlib wants real colours; these stand for the page's and are replaced by them.
INK, MUTED, ACCENT, GRID = "#0a0b0c", "#1a1b1c", "#2a2b2c", "#3a3b3c"
COLOURS: Mapping[str, str] = {INK: "var(--ink)", MUTED: "var(--muted)", ACCENT: "var(--accent)", GRID: "var(--line)"}


def settings(ink: str = INK, grid: str = GRID) -> dict[Any, Any]:
    """What a chart is drawn with, for ``matplotlib.rc_context``."""
    return {
        "svg.fonttype": "none",  # text stays text: it can be selected, and takes the page's font
        "svg.hashsalt": "sapwood",  # ids that do not change from run to run
        "font.family": "DejaVu Sans",  # comes with matplotlib, so the layout is the same everywhere
        "font.size": 9,
        "axes.edgecolor": grid,
        "axes.labelcolor": ink,
        "xtick.color": grid,
        "ytick.color": grid,
        "xtick.labelcolor": ink,
        "ytick.labelcolor": ink,
        "text.color": ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }


def element(figure: Figure, label: str, *, colours: Mapping[str, str] = COLOURS, prefix: str = "") -> str:
    """A figure as an element of an HTML page.

    Args:
        figure: drawn with the placeholders among ``colours``, inside ``rc_context(settings())``.
        label: what a screen reader says in its place; must already be escaped for HTML.
        colours: placeholder to what the style sheet calls the colour.
        prefix: before every id, where a page has several charts.
    """
    stream = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)  # would reach the whole page
    opening = f'<svg class="chart" \\1 role="img" aria-label="{label}">'
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', opening, svg, count=1)
    svg = re.sub(r"'?DejaVu Sans'?", "var(--font)", svg)
    if prefix:
        svg = re.sub(r'( id="|url\(#|href="#)', rf"\1{prefix}-", svg)
    for placeholder, colour in colours.items():
        svg = svg.replace(placeholder, colour)
    return svg.strip()


def percent(value: float | None) -> float:
    """A fraction in per cent; NaN, which leaves a gap in a line, for None."""
    return float("nan") if value is None else 100 * value


def ticks(count: int) -> list[int]:
    """At most twelve of the rounds 1..count.

    >>> ticks(3), ticks(20)
    ([1, 2, 3], [1, 3, 5, 7, 9, 11, 13, 15, 17, 19])
    """
    step = max(1, -(-count // 12))
    return list(range(1, count + 1, step))
