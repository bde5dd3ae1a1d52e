"""Outlines and run lengths as pixels, against what is inside by another way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sapwood.data.raster import paint_circle, paint_polygon, paint_runs, polygon_area, runs_of


def painted(points: list[tuple[float, float]], height: int, width: int) -> np.ndarray:
    canvas = np.zeros((height, width), np.uint8)
    paint_polygon(canvas, np.array(points, float), 3)
    return canvas


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 25), st.floats(-5, 20)), min_size=3, max_size=3))
def test_triangles(corners: list[tuple[float, float]]) -> None:
    """Inside is on the same side of all three edges; centres as good as on an edge may go either way."""
    rows, columns = np.mgrid[:14, :20] + 0.5
    sides = np.stack(
        [
            (x1 - x0) * (rows - y0) - (y1 - y0) * (columns - x0)
            for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True)
        ]
    )
    inside = (sides > 0).all(0) | (sides < 0).all(0)
    certain = (np.abs(sides) > 1e-6).all(0)
    assert np.array_equal((painted(corners, 14, 20) == 3)[certain], inside[certain])


def test_neighbours_share_no_pixel_and_leave_none_out() -> None:
    """A fan of triangles around a point covers its frame exactly once."""
    random = np.random.default_rng(0)
    for _ in range(20):
        middle = tuple(random.uniform(0, 16, 2))
        around = [(0, 0), (9.3, 0), (16, 0), (16, 7.5), (16, 16), (4.5, 16), (0, 16), (0, 3.7)]
        total = sum(
            (painted([middle, one, other], 16, 16) == 3).astype(int)
            for one, other in zip(around, [*around[1:], around[0]], strict=True)
        )
        assert (total == 1).all()


def test_rectangles_are_exact_and_cut_at_the_border() -> None:
    found = painted([(2, 1), (5, 1), (5, 3), (2, 3)], 4, 6)
    assert found.tolist() == [[0] * 6, [0, 0, 3, 3, 3, 0], [0, 0, 3, 3, 3, 0], [0] * 6]
    assert (painted([(-9, -9), (99, -9), (99, 99), (-9, 99)], 4, 6) == 3).all()
    for away in ((50, 0), (-50, 0), (0, 50), (0, -50)):
        assert not painted([(away[0], away[1]), (away[0] + 3, away[1]), (away[0], away[1] + 3)], 4, 6).any()


def test_a_line_crossed_twice_is_outside() -> None:
    """A ring drawn in one stroke: the inner square, surrounded the same way round, is outside."""
    found = painted([(0, 0), (6, 0), (6, 6), (0, 6), (0, 0), (2, 2), (4, 2), (4, 4), (2, 4), (2, 2)], 6, 6)
    assert found[2:4, 2:4].tolist() == [[0, 0], [0, 0]]
    assert (found == 3).sum() == 32


def test_areas() -> None:
    assert polygon_area(np.array([[0, 0], [4, 0], [4, 3]])) == 6
    assert polygon_area(np.array([[4, 3], [4, 0], [0, 0]])) == 6


def test_circles() -> None:
    canvas = np.zeros((5, 7), np.uint8)
    paint_circle(canvas, (3.5, 2.5), 1.0, 9)
    assert canvas[1:4, 2:5].tolist() == [[0, 9, 0], [9, 9, 9], [0, 9, 0]]
    assert (canvas == 9).sum() == 5


def test_runs_go_down_the_columns() -> None:
    canvas = np.zeros((3, 4), np.uint8)
    paint_runs(canvas, [1, 3, 7, 1], 5)
    assert canvas.tolist() == [[0, 5, 0, 0], [5, 0, 0, 0], [5, 0, 0, 5]]
    for wrong in ([1, 3], [-1, 13], [13]):
        with pytest.raises(ValueError, match="add up"):
            paint_runs(canvas, wrong, 5)


def compressed(runs: list[int]) -> str:
    """Written from the format's description: five bits a character, sign-extended, differences from the fourth on."""
    text = ""
    for index, run in enumerate(runs):
        rest = run - (runs[index - 2] if index > 2 else 0)
        while True:
            group, rest = rest & 31, rest >> 5
            last = rest == (-1 if group & 16 else 0)
            text += chr(48 + (group if last else group | 32))
            if last:
                break
    return text


@given(st.lists(st.integers(0, 2**20), max_size=12))
def test_compressed_runs(runs: list[int]) -> None:
    assert runs_of(compressed(runs)) == runs


def test_text_that_is_no_run_lengths() -> None:
    with pytest.raises(ValueError, match="does not belong"):
        runs_of("5 2")
