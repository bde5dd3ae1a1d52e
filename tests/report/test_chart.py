"""The line chart: what its lines join."""

from __future__ import annotations

import re

from sapwood.report.chart import course_chart

MATRIX = [[0.9, None, None], [0.8, 0.7, None], [0.5, 0.6, 0.9]]


def steps(breaks: tuple[tuple[int, int], ...]) -> list[int]:
    """How many points each thin line has, in the order they are drawn."""
    drawn = course_chart(MATRIX, [0.9, 0.75, 0.6], "accuracy", "a chart", breaks)
    thin = re.findall(r'<path d="([^"]*)" clip-path[^>]*stroke-width: 0.9', drawn)
    return [len(re.findall("[ML]", path)) for path in thin]


def test_no_line_joins_what_cannot_be_compared() -> None:
    assert steps(()) == [3, 2, 1]
    assert steps(((1, 0),)) == [1, 2, 2, 1]
    assert steps(((2, 0), (2, 1))) == [2, 1, 1, 1, 1]
