"""The lines of a benchmark as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

from sapwood.bench.columns import cells, headings, notes
from sapwood.bench.published import Published, published, published_cells, published_headings, published_notes
from sapwood.bench.summary import MEASURES, TIMED, Line, group_starts

_PUBLISHED = "llrrl"


def markdown(lines: Sequence[Line]) -> str:
    """``table.md``: the table, its notes, and what others published on the same benchmark."""
    row = lines[0].rows[0]
    rows = [cells(line) for line in lines]
    parts = [
        f"# {row['benchmark']}",
        f"Backbone {row['backbone']}, {len(row['rounds'])} rounds, {len(row['classes'])} classes.",
        _grid(headings(row["kind"]), rows, "ll" + "r" * (len(rows[0]) - 2)),
        *notes(lines),
    ]
    if entries := published(row["benchmark"]):
        parts += [
            "## Published by others",
            _grid(published_headings(), [published_cells(entry) for entry in entries], _PUBLISHED),
            *published_notes(entries),
        ]
    return "\n\n".join(parts) + "\n"


def _grid(heads: Sequence[str], rows: Iterable[Sequence[str]], columns: str) -> str:
    """``columns``: l or r for each, as in LaTeX."""
    rule = ["---:" if side == "r" else "---" for side in columns]
    lines = [[_plain(cell) for cell in heads], rule, *([_plain(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(words: str) -> str:
    r"""Text that Markdown shows as it is.

    >>> print(_plain("a|b_c*<d>"))
    a\|b\_c\*\<d>
    """
    return re.sub(r"([\\`*_|<])", r"\\\1", words)


def latex(lines: Sequence[Line]) -> str:
    """``table.tex``: a ``table*`` for a paper that loads booktabs; lines set off where bounds and controls begin."""
    row = lines[0].rows[0]
    heads = headings(row["kind"])
    body = [_tex_row(cells(line)) for line in lines]
    for place in reversed(group_starts(lines)):
        body.insert(place, "\\midrule")
    caption = f"{row['benchmark']}, backbone {row['backbone']}, {len(row['rounds'])} rounds."
    parts = [
        "% \\usepackage{booktabs}",
        "\\begin{table*}",
        "\\centering\\scriptsize\\setlength{\\tabcolsep}{3pt}",
        f"\\caption{{{escape(caption)}}}",
        *_tabular(heads, "ll" + "r" * (len(heads) - 2), body),
        *_tex_notes(notes(lines)),
    ]
    if entries := published(row["benchmark"]):
        parts += _tex_published(entries)
    return "\n".join([*parts, "\\end{table*}"]) + "\n"


def _tex_published(entries: Sequence[Published]) -> list[str]:
    body = [_tex_row(published_cells(entry)) for entry in entries]
    return ["\\par\\medskip", *_tabular(published_headings(), _PUBLISHED, body), *_tex_notes(published_notes(entries))]


def _tabular(heads: Sequence[str], columns: str, body: Sequence[str]) -> list[str]:
    return [
        f"\\begin{{tabular}}{{{columns}}}",
        "\\toprule",
        _tex_row(heads),
        "\\midrule",
        *body,
        "\\bottomrule",
        "\\end{tabular}",
    ]


def _tex_notes(found: Sequence[str]) -> list[str]:
    return ["\\par\\smallskip\\raggedright", *(f"{escape(note)}\\par" for note in found)]


def _tex_row(row: Sequence[str]) -> str:
    return " & ".join(map(escape, row)) + r" \\"


_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "−": "$-$",
    "×": r"$\times$",
    "–": "--",
    "†": r"\textsuperscript{\textdagger}",
    "‡": r"\textsuperscript{\textdaggerdbl}",
    **{each: f"\\{each}" for each in "&%$#_{}"},
    **{each: f"{{{each}}}" for each in "[]"},  # after \\ a bracket would be a length
}


def escape(words: str) -> str:
    r"""Text as LaTeX prints it.

    >>> print(escape("own:a_b 50 % ± 1"))
    own:a\_b 50 \% $\pm$ 1
    """
    return "".join(_TEX.get(each, each) for each in words)


_FACTS = ("benchmark", "kind", "measure", "backbone")


def comma_separated(lines: Sequence[Line]) -> str:
    """``table.csv``: a line a (method, weights), every number in full; fractions, bytes and seconds as in the rows.

    ``X`` is the mean and ``X_sd`` the standard deviation over the seeds; empty where not measured or not valid.
    """
    heads = [
        *_FACTS,
        *("method", "weights", "seeds", "reconstructed", "upper_bound", "control", "timing_valid"),
        *(name + end for name in MEASURES for end in ("", "_sd")),
        *("gap", "gap_low", "gap_high", "gap_seeds"),
    ]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(heads)
    for line in lines:
        writer.writerow(["" if value is None else value for value in _values(line)])
    return stream.getvalue()


def _values(line: Line) -> list[object]:
    flags = (line.reconstructed, line.upper_bound, line.control, line.timing_valid)
    found: list[object] = [line.rows[0][name] for name in _FACTS]
    found += [line.method, line.weights, " ".join(map(str, line.seeds)), *(str(flag).lower() for flag in flags)]
    for name in MEASURES:
        value = None if name in TIMED and not line.timing_valid else line.values[name]
        found += [value.mean, value.deviation] if value else [None, None]
    gap = line.gap
    return found + ([gap.mean, gap.low, gap.high, " ".join(map(str, gap.seeds))] if gap else [None] * 4)
