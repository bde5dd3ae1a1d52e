"""Tables as people and programs read them."""

from __future__ import annotations

import csv
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sapwood.bench import tables
from sapwood.bench.columns import headings, notes
from sapwood.bench.published import SECOND_HAND, published, published_cells
from sapwood.bench.summary import MEASURES, summarise

from .helpers import mask_rows, row, rows


def grid(markdown: str, heading: str) -> list[list[str]]:
    """Cells of the first table whose first heading is ``heading``."""
    lines = markdown.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    found = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return found


def test_markdown_holds_every_line_in_percent() -> None:
    heads, rule, *body = grid(tables.markdown(summarise(rows())), "method")
    assert heads == headings("classification")
    assert rule == ["---"] * 2 + ["---:"] * (len(heads) - 2)
    assert all(len(cells) == len(heads) for cells in body)
    assert [cells[0] for cells in body] == ["seq-lora", "c-lora †", "ncm", "joint ‡", "ncm"]
    assert [cells[1] for cells in body] == ["pre-trained"] * 4 + ["random"]


def test_numbers_are_printed_in_their_units() -> None:
    (line,) = summarise(
        [
            row(
                last_accuracy=0.7341,
                forgetting=-0.02,
                bytes=16_251_048,
                state_bytes=4_100_000,
                peak_memory=1_006_047_232,
            )
        ]
    )
    cells = dict(zip(headings("classification"), grid(tables.markdown([line]), "method")[2], strict=True))
    assert cells["Last-Acc"] == "73.4"
    assert cells["forgetting"] == "−2.0"
    assert cells["trainable parameters"] == "298,762"
    assert cells["MB kept a round"] == "16.3"
    assert cells["MB in all"] == "4.10"
    assert cells["peak memory, MB"] == "1,006"
    assert cells["GMACs"] == "1.23"
    assert cells["training, s"] == "147"
    assert cells["gap to joint [95%]"] == "–"
    assert cells["seeds"] == "0"


def test_spread_is_shown_for_several_seeds() -> None:
    made = [row(seed=seed, last_accuracy=value) for seed, value in enumerate((0.70, 0.72, 0.74))]
    cells = dict(zip(headings("classification"), grid(tables.markdown(summarise(made)), "method")[2], strict=True))
    assert cells["Last-Acc"] == "72.0 ± 2.0"
    assert cells["trainable parameters"] == "298,762"  # no spread, none shown
    assert cells["seeds"] == "0, 1, 2"


def test_masks_have_their_own_columns(tmp_path: Path) -> None:
    made = tables.markdown(summarise(mask_rows(tmp_path), tmp_path))
    heads = grid(made, "method")[0]
    assert heads[2:7] == ["mIoU all", "old", "new", "background", "Inc"]
    assert "Last-Acc" not in made


@pytest.mark.parametrize(
    ("changed", "mark"),
    [
        ({"reconstructed": True}, "† Reconstructed"),
        ({"upper_bound": True}, "‡ Upper bound"),
        ({"weights": "random"}, "random: "),
        ({"timing_valid": False}, "Timings invalid"),
        ({"code_sha256": "other"}, "The rows come from 2 states of the code"),
        ({"netscore": None}, "– Not measured"),
    ],
)
def test_notes_only_for_marks_that_occur(changed: dict[str, Any], mark: str) -> None:
    joint, plain = row("joint", upper_bound=False), row("plain")
    found = {
        with_it: [note for note in notes(summarise([joint, plain, *extra])) if note.startswith(mark)]
        for with_it, extra in ((False, []), (True, [row("other", **changed)]))
    }
    assert len(found[True]) == 1
    # Without a bound there is no gap, and its dash is explained already.
    assert len(found[False]) == (mark == "– Not measured")


def test_no_dash_no_note() -> None:
    joint = row("joint")
    lines = [line for line in summarise([joint, row("plain")]) if not line.upper_bound]
    assert not any(note.startswith("–") for note in notes(lines))


def test_invalid_timings_are_nowhere_shown() -> None:
    lines = summarise([row(timing_valid=False, train_seconds=98.7654, milliseconds_per_image=43.21)])
    cells = dict(zip(headings("classification"), grid(tables.markdown(lines), "method")[2], strict=True))
    assert cells["training, s"] == cells["ms a picture"] == "–"
    for text in (tables.markdown(lines), tables.latex(lines), tables.comma_separated(lines)):
        assert "98.7" not in text
        assert "43.2" not in text
    assert cells["peak memory, MB"] == "1,006"


def test_csv_has_every_number_in_full() -> None:
    made = rows()
    lines = summarise(made)
    found = list(csv.DictReader(tables.comma_separated(lines).splitlines()))
    assert [(each["method"], each["weights"]) for each in found] == [(line.method, line.weights) for line in lines]
    for line, cells in zip(lines, found, strict=True):
        for name in MEASURES:
            value = line.values[name]
            assert cells[name] == ("" if value is None else repr(value.mean))
            assert cells[f"{name}_sd"] == ("" if value is None or value.deviation is None else repr(value.deviation))
        if line.gap:
            assert [float(cells[f"gap{end}"]) for end in ("", "_low", "_high")] == [
                line.gap.mean,
                line.gap.low,
                line.gap.high,
            ]
    assert found[1]["reconstructed"] == "true"
    assert found[1]["seeds"] == found[1]["gap_seeds"] == "0 1 2"


def test_latex_is_well_formed() -> None:
    text = tables.latex(summarise([*rows(), row("own_method{100%}&#$^~\\", level=0.4)]))
    bare = re.sub(r"\\[\\&%$#_{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert Counter(re.findall(r"\\begin\{(\w+\*?)\}", text)) == Counter(re.findall(r"\\end\{(\w+\*?)\}", text))
    for columns, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        lines = [line for line in body.strip().splitlines() if not re.fullmatch(r"\\(top|mid|bottom)rule", line)]
        assert all(line.endswith(r" \\") for line in lines)
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {len(columns)}
    assert text.isascii()
    assert r"own\_method\{100\%\}\&\#\$\textasciicircum{}\textasciitilde{}\textbackslash{}" in text
    # Rules: below the headings, before the bound, before random weights; below the published headings.
    assert text.count("\\midrule") == 4


def test_names_cannot_break_the_markdown_table() -> None:
    body = grid(tables.markdown(summarise([row("a|b*c"), row("d")])), "method")[2:]
    assert [cells[0] for cells in body] == [r"a\|b\*c", "d"]


def test_published_numbers_stand_below_where_the_benchmark_is_the_same() -> None:
    made = tables.markdown(summarise(rows()))
    heads, _, *body = grid(made[made.index("## Published") :], "method")
    assert heads == ["method", "backbone", "Last-Acc", "Inc-Acc", "source"]
    assert ["C-LoRA", "ViT", "91.67", "94.29", "arXiv 2502.17920, 10 tasks [second-hand]"] in body
    assert "Not comparable" in made
    assert made.index("Published by others") > made.index("c-lora")
    assert "Published" not in tables.markdown(summarise([row(benchmark="split-cifar10-5x2")]))


def test_published_numbers_say_where_they_are_from() -> None:
    names = ("split-cifar100-10x10", "imagenet-r-10x20", "cub-10x20", "cars-10")
    for name in names:
        entries = published(name)
        assert len({(entry.method, entry.source) for entry in entries}) == len(entries) >= 5
        for entry in entries:
            assert 0 < entry.last < 1
            assert entry.incremental is None or entry.last < entry.incremental < 1
            assert (SECOND_HAND in published_cells(entry)[-1]) == entry.second_hand
    cells = {entry.method: published_cells(entry)[2:4] for entry in published("imagenet-r-10x20")}
    assert cells["InfLoRA"] == ["75.34", "80.6"]
    assert cells["RanPAC"] == ["77.9", "–"]
    assert published("split-cifar100-20x5") == ()


def test_solved_parameters_are_told_where_netscore_counts_them() -> None:
    trained, solved = row("joint", fitted_parameters=298_762), row("ridge", fitted_parameters=320)
    told = "NetScore counts what is solved for"
    assert [note for note in notes(summarise([trained, solved])) if note.startswith(told)]
    assert not [note for note in notes(summarise([trained])) if note.startswith(told)]
