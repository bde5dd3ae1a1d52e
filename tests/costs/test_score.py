"""NetScore against the points that CLoRA prints, and where it has no value."""

from __future__ import annotations

import math

import pytest

from sapwood.costs import netscore


@pytest.mark.parametrize(
    ("accuracy", "millions", "gmacs", "score"),
    [
        (70.91, 305.17, 397.095, 23.19),  # MiB, VOC 15-5
        (70.39, 3.21, 402.256, 42.79),  # with CLoRA
        (61.95, 305.17, 397.095, 20.85),  # MiB, VOC 15-1
        (70.13, 3.21, 402.256, 42.73),  # with CLoRA
    ],
)
def test_the_points_of_the_paper(accuracy: float, millions: float, gmacs: float, score: float) -> None:
    found = netscore(accuracy, millions, gmacs)
    assert found is not None
    assert abs(found - score) < 0.01
    assert found == pytest.approx(20 * math.log10(accuracy**2 / (math.sqrt(millions) * math.sqrt(gmacs))))


@pytest.mark.parametrize(("accuracy", "millions"), [(0, 1), (50, 0), (0, 0)])
def test_no_value_where_nothing_is_right_or_nothing_fitted(accuracy: float, millions: float) -> None:
    assert netscore(accuracy, millions, 1.0) is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((100.1, 1, 1), "in per cent, 0..100, got 100.1"),
        ((-1, 1, 1), "in per cent"),
        ((math.nan, 1, 1), "in per cent"),
        ((50, -1, 1), "parameters must be >= 0"),
        ((50, math.inf, 1), "parameters must be >= 0"),
        ((50, 1, 0), "gmacs > 0"),
        ((50, 1, math.nan), "gmacs > 0"),
    ],
)
def test_numbers_that_cannot_be(arguments: tuple[float, float, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        netscore(*arguments)
