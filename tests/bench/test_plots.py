"""Charts: what they show, that names do not lie on each other, and that nothing global changes."""

from __future__ import annotations

import io
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sapwood.bench import plots, theme
from sapwood.bench.placing import apart, clusters, decades
from sapwood.bench.plots import Chart, charts
from sapwood.bench.summary import summarise

from .helpers import row, rows

NAMES = ["after-each-round", "forgetting", "trainable-parameters", "netscore"]


@pytest.fixture(scope="module")
def drawn() -> list[Chart]:
    before = dict(mpl.rcParams)
    found = charts(summarise(rows()))
    assert dict(mpl.rcParams) == before
    return found


def test_four_charts_as_readable_pictures(drawn: list[Chart]) -> None:
    assert [chart.name for chart in drawn] == NAMES
    for chart in drawn:
        picture = np.asarray(Image.open(io.BytesIO(chart.png)).convert("RGB"))
        assert picture.shape[1] >= 1000
        assert (picture == 255).all(-1).mean() > 0.5  # on white
        assert (picture < 128).any(-1).mean() > 0.002


def test_every_line_is_named_in_every_chart(drawn: list[Chart]) -> None:
    for chart in drawn:
        for name in ("seq-lora", "c-lora †", "joint ‡", "ncm", "ncm, random weights"):
            assert f">{name}</text>" in chart.svg, (chart.name, name)


def test_colours_are_the_pages_and_ids_are_the_charts_own(drawn: list[Chart]) -> None:
    ids = [name for chart in drawn for name in re.findall(r' id="([^"]+)"', chart.svg)]
    assert len(ids) == len(set(ids))
    for chart in drawn:
        assert not re.findall(r"(?:fill|stroke): #(?!f{6})\w+", chart.svg)
        assert set(re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", chart.svg)) <= {
            pair for name in ids for pair in ((name, ""), ("", name))
        }
    used = set(re.findall(r"var\((--series-\d)\)", drawn[0].svg))
    assert used == {"--series-0", "--series-1", "--series-2"}
    assert all(f"{name}:" in theme.STYLE for name in used)


def luminance(colour: str) -> float:
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_colours_of_lines_can_be_read_as_text() -> None:
    """WCAG contrast: 3 for what is drawn; the names stand beside their lines too."""
    light, dark = re.findall(r":root \{ (--series.*?) \}", theme.STYLE)
    for paper, block in (("#fbfaf7", light), ("#151814", dark)):
        for colour in re.findall(r"#\w{6}", block):
            high, low = sorted((luminance(paper), luminance(colour)), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 3, colour


def test_what_was_not_measured_is_not_drawn() -> None:
    nothing: dict[str, Any] = {"netscore": None, "forgetting": None, "after_each": [{}, {}, {}]}
    found = charts(summarise([row(**nothing, trainable_parameters=0)]))
    assert [chart.name for chart in found] == ["trainable-parameters"]


def test_a_joint_row_of_the_last_round_only_is_a_point(drawn: list[Chart]) -> None:
    late = row("joint", after_each=[{}, {}, {"accuracy": 0.824}], forgetting=None)
    found = {chart.name: chart.svg for chart in charts(summarise([row(), late]))}
    assert ">joint ‡</text>" in found["after-each-round"]
    assert found["forgetting"].count(">not defined</text>") == 1


def test_a_method_that_is_always_right_has_an_axis_too() -> None:
    (line,) = summarise([row(after_each=[{"accuracy": 1.0}] * 3)])
    assert "after-each-round" in [chart.name for chart in charts([line])]  # its axis has two ends, or this warns


def test_names_are_not_formulas() -> None:
    (line,) = summarise([row("$\\alpha$<b>", forgetting=None, netscore=None)])
    for chart in charts([line]):
        assert ">$\\alpha$&lt;b&gt;</text>" in chart.svg


def test_matplotlib_waits_until_something_is_drawn_and_pyplot_for_ever() -> None:
    for file in Path(plots.__file__).parent.glob("*.py"):
        text = file.read_text("utf-8")
        assert not re.search(r"^(import|from) matplotlib", text, re.MULTILINE), file.name
        assert "pyplot" not in text, file.name


heights = st.lists(st.floats(0, 100), min_size=1, max_size=12)


@given(heights, st.floats(0.1, 8))
def test_names_keep_apart_and_in_order(values: list[float], least: float) -> None:
    found = apart(values, least, 0, 100)
    order = sorted(range(len(values)), key=lambda index: values[index])
    placed = [found[index] for index in order]
    assert all(high - low >= least - 1e-9 for low, high in pairwise(placed))
    if (len(values) - 1) * least <= 100:
        assert placed[0] >= -1e-9
        assert placed[-1] <= 100 + 1e-9


@given(st.lists(st.integers(0, 20).map(float), min_size=1, max_size=12))
def test_names_with_room_stay_where_they_are(values: list[float]) -> None:
    alone = sorted(set(values))
    assert apart(alone, 1.0, 0, 20) == pytest.approx(alone)


@given(st.lists(st.floats(1, 1e8), min_size=1, max_size=20))
def test_groups_hold_every_point_once_and_are_far_apart(values: list[float]) -> None:
    found = clusters(values, 3)
    assert sorted(index for group in found for index in group) == list(range(len(values)))
    for low, high in pairwise(found):
        assert min(values[index] for index in high) > 3 * max(values[index] for index in low)


@given(st.lists(st.integers(0, 10**9).map(float), min_size=1, max_size=10))
def test_the_axis_holds_every_size(values: list[float]) -> None:
    ticks, nothing = decades(values)
    positions = [at for at, _ in ticks]
    assert positions == sorted(positions)
    for value in values:
        assert positions[0] <= (value or nothing) <= positions[-1]
    assert ("0" in [name for _, name in ticks]) == (0 in values)
