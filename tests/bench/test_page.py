"""The benchmark's page and the files beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sapwood.bench import page, plots
from sapwood.bench.outputs import write_all
from sapwood.bench.summary import summarise

from .helpers import load, mask_rows, row, rows

reading = load("report/helpers.py")
Page, check_self_contained = reading.Page, reading.check_self_contained

NASTY = "<script>alert('x')</script> & \"quoted\" $\\alpha$"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("bench")
    write_all(rows(), made)
    return made


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    return (folder / "report.html").read_text("utf-8")


def test_all_files_are_there_and_nothing_else(folder: Path) -> None:
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    charts = ("after-each-round", "forgetting", "netscore", "trainable-parameters")
    tables = ["table.csv", "table.md", "table.tex"]
    assert found == [*(f"plots/{name}.png" for name in charts), "report.html", "results.json", *tables]


def test_results_are_the_rows(folder: Path) -> None:
    assert json.loads((folder / "results.json").read_text("utf-8")) == rows()


def test_page_is_well_formed_and_loads_nothing(html: str) -> None:
    check_self_contained(html)
    ids = [attributes["id"] for _, attributes in Page(html).elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert "http" not in html.replace("http-equiv", "").replace("http://www.w3.org/", "")


def test_result_comes_first(html: str) -> None:
    found = Page(html)
    headings = [text for text in found.texts if text in SECTIONS]
    assert headings == list(SECTIONS)
    assert html.index("<table") < html.index("<svg") < html.index("<details")
    assert "c-lora †" in found.texts[found.texts.index("Result") :][:6]


SECTIONS = (
    "Result",
    "Published by others",
    "Charts",
    "Accuracy of each round",
    "What reproduces it",
    "Order of the classes",
)


def test_table_says_what_the_other_tables_say(html: str, folder: Path) -> None:
    texts = Page(html).texts
    body = [line for line in (folder / "table.md").read_text("utf-8").splitlines() if line.startswith("| c-lora")]
    cells = [cell.strip() for cell in body[0].split("|")[1:-1]]
    start = texts.index("c-lora †", texts.index("Mean over seeds"))
    assert texts[start : start + len(cells)] == cells


def test_bounds_and_controls_are_set_apart(html: str) -> None:
    assert html.count('<tr class="apart"><th scope="row">joint ‡') == 1
    assert html.count('<tr class="apart">') == 2


def test_matrices_are_folded_one_a_seed(html: str) -> None:
    found = Page(html)
    assert all("open" not in attributes for attributes in found.find("details"))
    assert sum(text.startswith("Seed ") for text in found.texts) == len(rows())
    assert len(found.find("table", **{"class": "heat"})) == len(rows())
    assert len(found.find("td", **{"class": "missing"})) == 3 * len(rows())  # above the diagonal


def test_what_reproduces_it_is_there(html: str) -> None:
    texts = Page(html).texts
    wanted = {"code_sha256", "c0" * 32, "weights_sha256", "we" * 32, "libraries.torch", "2.13.0", "precision", "fp32"}
    assert wanted <= set(texts)
    assert {f"data_sha256, seed {seed}" for seed in range(3)} <= set(texts)
    assert {f"da{seed:062d}" for seed in range(3)} <= set(texts)
    assert {"settings.training.lr", "0.0003", "settings.adapter.sites", "q, v"} <= set(texts)
    assert texts.count("code_sha256") == 1  # shared by all rows, said once


def test_a_setting_that_differs_between_methods_is_not_called_shared() -> None:
    lines = summarise([row(), row("other", precision="bf16")])
    texts = Page(page.render(lines, [])).texts
    assert texts.count("precision") == 2
    assert {"fp32", "bf16"} <= set(texts)


def test_order_of_classes_by_seed(html: str) -> None:
    texts = Page(html).texts
    for made in rows()[:3]:
        assert f"order seed {made['order_seed']} (seed {made['seed']})" in texts
        assert ", ".join(made["rounds"][0]) in texts


def test_long_rounds_are_folded() -> None:
    names = [f"class {number}" for number in range(40)]
    made = Page(page.render(summarise([row(rounds=[names], classes=names, order_seed=None)]), []))
    assert "and 28 more" in made.texts
    assert "natural order (seed 0)" in made.texts


def test_everything_is_escaped() -> None:
    hostile: dict[str, Any] = {
        "benchmark": NASTY,
        "backbone": NASTY,
        "rounds": [[NASTY], [NASTY], [NASTY]],
        "settings": {NASTY: NASTY},
        "device": NASTY,
        "reconstructed": True,
    }
    lines = summarise([row("joint", **hostile), row(NASTY, **hostile)])
    html = page.render(lines, plots.charts(lines))
    assert "<script" not in html
    assert Page(html).texts.count(NASTY) >= 6
    check_self_contained(html)


def test_masks_have_a_page_too(tmp_path: Path) -> None:
    write_all(mask_rows(tmp_path), tmp_path)
    html = (tmp_path / "report.html").read_text("utf-8")
    check_self_contained(html)
    texts = Page(html).texts
    assert {"mIoU all", "IoU of each round", "Mean IoU on all classes so far, after each round"} <= set(texts)
    assert "Highest last mean IoU below the bound:" in texts


def test_same_rows_same_files(folder: Path, tmp_path: Path) -> None:
    write_all(rows(), tmp_path)
    for file in folder.rglob("*"):
        if file.is_file():
            assert (tmp_path / file.relative_to(folder)).read_bytes() == file.read_bytes(), file.name


def test_rows_that_cannot_be_written_leave_the_old_files(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="JSON"):
        write_all([row(settings={"adapter": {"rank": float("nan")}})], folder)
    with pytest.raises(ValueError, match="no rows"):
        write_all([], folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_rounds_without_new_classes_bear_their_names() -> None:
    """Domains: otherwise nobody could tell which column is which."""
    made = row(rounds=[["cat", "dog"], [], []], round_names=["clean", "noise", "blur"])
    html = page.render(summarise([made]), [])
    assert all(html.count(f">{name}</span>") == 1 for name in ("clean", "noise", "blur"))
