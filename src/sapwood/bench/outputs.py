"""The files that are made of a benchmark's rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from sapwood.bench import page, plots, tables
from sapwood.bench.summary import Row, summarise
from sapwood.state.files import make_folder, put


def write_all(rows: Sequence[Row], folder: Path) -> None:
    """Write ``results.json``, ``table.md``, ``.tex`` and ``.csv``, ``plots/*.png`` and ``report.html`` into ``folder``.

    Each file is the old one or the whole new one, whenever the process ends. The same rows give the same bytes.

    Args:
        rows: of one benchmark, in the order in which methods shall stand.
        folder: of the benchmark; ``rows/`` in it holds the pixel counts that rows of masks name.

    Raises:
        ValueError: no rows, rows of several benchmarks, several of one seed, or numbers that JSON does not know.
        DataError: the outcomes of a row's pictures are missing or do not fit the row.
    """
    results = json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    lines = summarise(rows, folder)
    charts = plots.charts(lines)
    files: dict[Path, str | bytes] = {
        Path("results.json"): results,
        Path("table.md"): tables.markdown(lines),
        Path("table.tex"): tables.latex(lines),
        Path("table.csv"): tables.comma_separated(lines),
        **{Path("plots") / f"{chart.name}.png": chart.png for chart in charts},
        Path("report.html"): page.render(lines, charts),
    }
    make_folder(folder / "plots")
    for old in (folder / "plots").glob("*.png"):  # of measures that the rows do not have any more
        if Path("plots") / old.name not in files:
            old.unlink()
    for name, content in files.items():
        put(folder / name, content)
