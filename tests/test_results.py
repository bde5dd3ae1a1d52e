"""Tables of docs/results.md say what the rows beside them measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sapwood.bench.columns import count, marked, mega, percent, score
from sapwood.bench.summary import Line, summarise

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs/results"
FOLDERS = sorted(file.parent for file in RESULTS.rglob("results.json"))
COLUMNS = {
    "Last-Acc": ("last_accuracy", percent),
    "Inc-Acc": ("average_incremental_accuracy", percent),
    "forgetting": ("forgetting", percent),
    "mIoU old": ("miou_old", percent),
    "new": ("miou_new", percent),
    "background": ("miou_background", percent),
    "all": ("miou_all", percent),
    "NetScore": ("netscore", score),
    "trained": ("trainable_parameters", count),
    "trainable parameters": ("trainable_parameters", count),
    "MB kept a round": ("bytes", mega),
    "MB in all": ("state_bytes", mega),
}


def lines_of(folder: Path) -> dict[tuple[str, str], Line]:
    rows = json.loads((folder / "results.json").read_text("utf-8"))
    for row in rows:
        row.pop("counts", None)
        row.pop("correct", None)  # intervals take long
    found = summarise(rows)
    return {(line.method, line.weights): line for line in found} | {
        (marked(line), line.weights): line for line in found
    }


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(RESULTS)))
def test_results_hold_every_row(folder: Path) -> None:
    rows = json.loads((folder / "results.json").read_text("utf-8"))
    named = [f"{row['method'].replace('/', '@')}-{row['weights']}-seed{row['seed']}" for row in rows]
    assert sorted(named) == sorted(file.stem for file in (folder / "rows").glob("*.json"))


@pytest.mark.parametrize(
    "name",
    [
        "split-cifar10-5x2",
        "split-cifar10-5x2-bf16",
        "split-cifar10-10x1",
        "camvid-4-3",
        "camvid-4-1",
        "camvid-hosts-4-3",
        "camvid-hosts-4-1",
    ],
)
def test_the_table_shows_what_was_measured(name: str) -> None:
    text = (ROOT / "docs/results.md").read_text("utf-8")
    check_table(re.split(rf"--out docs/results/{name}(?![\w-])", text)[-1], RESULTS / name)


def test_the_readme_shows_what_was_measured() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    check_table(text.split("300 pictures a class, no old pictures kept")[1], RESULTS / "split-cifar10-5x2-bf16")


def check_table(text: str, folder: Path) -> None:
    """The first table of the text has every line as the rows of the folder have it."""
    found = re.search(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    assert found is not None
    head, _, *body = ([cell.strip() for cell in line.strip("|").split("|")] for line in found[0].splitlines())
    lines = lines_of(folder)
    compared = 0
    for row in body:
        cells = dict(zip(head, row, strict=True))
        line = lines.get((cells["method"], {"pre-trained": "pretrained"}.get(cells["weights"], cells["weights"])))
        assert line is not None, cells["method"]
        assert cells["seeds"] == ", ".join(map(str, line.seeds)), cells["method"]
        for heading in COLUMNS.keys() & cells.keys():
            key, show = COLUMNS[heading]
            value = line.values[key]
            assert cells[heading] == ("–" if value is None else show(value)), (cells["method"], heading)
            compared += 1
    assert compared >= 4 * len(body) > 0


def test_adapters_and_heads_are_as_measured() -> None:
    text = (ROOT / "docs/results.md").read_text("utf-8").split("### Adapters and heads")[1]
    lines = lines_of(RESULTS / "adapters-and-heads")
    rows = re.findall(r"^\| (\S+) \| (\d.*?) \| (\d.*?) \| (\d.*?) \|$", text.split("\n### ")[0], re.MULTILINE)
    assert len(rows) == 7
    for adapter, *cells in rows:
        for head, cell in zip(("", "+slca", "+ridge"), cells, strict=True):
            values = lines[adapter + head, "pretrained"].values
            shown = f"{percent(values['last_accuracy'])} ({percent(values['average_incremental_accuracy'])})"
            assert cell == shown, (adapter, head)
