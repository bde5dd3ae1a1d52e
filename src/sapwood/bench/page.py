"""The benchmark's page: the result first, then the charts, then what stands behind each number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sapwood.bench import columns
from sapwood.bench.plots import Chart
from sapwood.bench.published import published, published_cells, published_headings, published_notes
from sapwood.bench.summary import Line, Row, group_starts
from sapwood.bench.theme import STYLE
from sapwood.report.frame import document, header
from sapwood.report.markup import Column, Html, heat, one_line, pairs, section, table, text

_SHOWN = 12  # classes of a round, before the rest is folded away


def render(lines: Sequence[Line], charts: Sequence[Chart]) -> str:
    """The whole page as one HTML document that loads nothing; the same lines give the same bytes."""
    row = lines[0].rows[0]
    sections = (
        _result(lines),
        _published(row["benchmark"]),
        _charts(charts),
        _matrices(lines),
        _settings(lines),
        _order(lines),
    )
    title = f"Benchmark {row['benchmark']}"
    return document(title, f"{header(title, _facts(lines))}<main>\n{''.join(sections)}</main>\n", STYLE)


def _facts(lines: Sequence[Line]) -> dict[str, object]:
    rows = [row for line in lines for row in line.rows]
    first = rows[0]
    return {
        "Backbone": first["backbone"],
        "Picture size": _side(first["image_size"]),
        "Rounds": len(first["rounds"]),
        "Classes": len(first["classes"]),
        "Seeds": ", ".join(map(str, sorted({row["seed"] for row in rows}))),
        "Methods": len(lines),
        "Device": ", ".join(sorted({str(row["device"]) for row in rows})),
    }


def _side(size: Any) -> str:
    """Pixels of a view, as they are typed."""
    return f"{size} px" if isinstance(size, int) else f"{'x'.join(map(str, size))} px"


def _result(lines: Sequence[Line]) -> str:
    kind = lines[0].rows[0]["kind"]
    heads = [Column(heading, number=place > 1) for place, heading in enumerate(columns.headings(kind))]
    made = table("Mean over seeds", heads, [columns.cells(line) for line in lines], "bench", group_starts(lines))
    return section("Result", _best(lines), made, _notes(columns.notes(lines)))


def _best(lines: Sequence[Line]) -> str:
    """The line with the best last measure among those that could be used: no bound, no random weights beside others."""
    drawn = all(line.random for line in lines)
    fair = [line for line in lines if not line.upper_bound and line.random == drawn and line.values["last_accuracy"]]
    if not fair:
        return ""
    best = max(fair, key=lambda line: line.values["last_accuracy"].mean)  # type: ignore[union-attr]
    value = best.values["last_accuracy"]
    assert value is not None
    measure = "mean IoU" if best.rows[0]["kind"] == "segmentation" else "accuracy"
    words = f"Highest last {measure} below the bound: <b>{text(columns.marked(best))}</b>, {columns.percent(value)} %"
    if best.gap:
        words += f"; {columns.gap(best.gap)} points to joint"
    return f"<p>{words}.</p>\n"


def _notes(found: Sequence[str]) -> str:
    return "".join(f'<p class="note">{text(note)}</p>\n' for note in found)


def _published(benchmark: str) -> str:
    entries = published(benchmark)
    if not entries:
        return ""
    heads = [Column(heading, number=heading.endswith("Acc")) for heading in published_headings()]
    made = table("Not comparable with the table above", heads, [published_cells(entry) for entry in entries])
    return section("Published by others", made, _notes(published_notes(entries)))


def _charts(charts: Sequence[Chart]) -> str:
    figures = (f"<figure><figcaption>{text(each.title)}</figcaption>{each.svg}</figure>\n" for each in charts)
    return section("Charts", f'<div class="charts">\n{"".join(figures)}</div>\n') if charts else ""


def _details(summary: object, *parts: str) -> str:
    return f"<details><summary>{text(summary)}</summary>\n{''.join(parts)}</details>\n"


def _name(line: Line) -> str:
    return columns.marked(line) + (", random weights" if line.random else "")


def _matrices(lines: Sequence[Line]) -> str:
    hint = "Rows: after learning a round. Columns: what that round brought, among all classes known then."
    folded = (
        _details(_name(line), f'<div class="seeds">\n{"".join(map(_matrix, line.rows))}</div>\n') for line in lines
    )
    measure = lines[0].rows[0]["measure"]
    return section(f"{measure[:1].upper()}{measure[1:]} of each round", _notes([hint]), *folded)


def _matrix(row: Row) -> Html:
    heads = [Column("after round"), *(Column(_round(row, on), number=True) for on in range(len(row["accuracy"])))]
    body = [
        [after + 1, *(heat(value) for value in _padded(cells, len(row["accuracy"])))]
        for after, cells in enumerate(row["accuracy"])
    ]
    return table(f"Seed {row['seed']}, {row['measure']} in percent", heads, body, "heat")


def _brought(row: Row) -> list[list[str]]:
    """The new classes of each round; where a round brings none, its name, as of a domain."""
    names = row.get("round_names", [""] * len(row["rounds"]))
    domains = any(not classes for classes in row["rounds"])
    return [[name] if domains else classes for name, classes in zip(names, row["rounds"], strict=True)]


def _padded(cells: Sequence[float | None], count: int) -> list[float | None]:
    return [*cells, *[None] * (count - len(cells))]


def _round(row: Row, place: int) -> Html:
    names = ", ".join(_brought(row)[place]) if place < len(row["rounds"]) else ""
    return Html(f'<span class="index">{place + 1}</span> <span class="name" title="{text(names)}">{text(names)}</span>')


_SHARED = (
    "kind",
    "measure",
    "train_pictures",
    "test_pictures",
    "image_size",
    "code_sha256",
    "code",
    "libraries",
    "threads",
)
_SHARED_TOO = ("device", "precision", "jobs")
_OWN = ("backbone", "weights_sha256", "parts", "settings", "run")
_OF_A_SEED = ("order_seed", "data_sha256")


def _settings(lines: Sequence[Line]) -> str:
    """What all rows share once, what a method has of its own folded away; ``results.json`` has all of it."""
    rows = [row for line in lines for row in line.rows]
    wanted = (*_SHARED, *_SHARED_TOO)
    shared = {name: rows[0].get(name) for name in wanted if all(row.get(name) == rows[0].get(name) for row in rows)}
    folded = (_details(_name(line), _own(line, [name for name in wanted if name not in shared])) for line in lines)
    hint = "The file results.json holds every row in full."
    return section("What reproduces it", pairs("Shared", "setting", _flat(shared), one_line), _notes([hint]), *folded)


def _own(line: Line, differing: Sequence[str]) -> Html:
    """One value where all seeds have the same, else one a seed."""
    found: dict[str, Any] = {}
    for name in (*_OWN, *_OF_A_SEED, *differing):
        values = [_flat({name: row.get(name)}) for row in line.rows]
        for key in dict.fromkeys(key for each in values for key in each):
            several = [each.get(key) for each in values]
            if all(value == several[0] for value in several):
                found[key] = several[0]
            else:
                found |= {f"{key}, seed {row['seed']}": value for row, value in zip(line.rows, several, strict=True)}
    return pairs(_name(line), "setting", found, one_line)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name.

    >>> _flat({"adapter": {"rank": 8}, "seed": 0})
    {'adapter.rank': 8, 'seed': 0}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _order(lines: Sequence[Line]) -> str:
    """The classes of each round, by order of classes."""
    orders: dict[str, list[list[str]]] = {}
    seeds: dict[str, set[int]] = {}
    for row in (row for line in lines for row in line.rows):
        name = "natural order" if row["order_seed"] is None else f"order seed {row['order_seed']}"
        orders.setdefault(name, _brought(row))
        seeds.setdefault(name, set()).add(row["seed"])
    folded = []
    for name, rounds in orders.items():
        body = [[place, _listed(names)] for place, names in enumerate(rounds, start=1)]
        made = table(f"Classes by round, {name}", [Column("round"), Column("classes")], body)
        used = ", ".join(map(str, sorted(seeds[name])))
        folded.append(_details(f"{name} (seed {used})", made))
    return section("Order of the classes", *folded)


def _listed(names: Sequence[str]) -> Html:
    shown, rest = ", ".join(map(text, names[:_SHOWN])), ", ".join(map(text, names[_SHOWN:]))
    more = f"<details><summary>and {len(names) - _SHOWN} more</summary>{rest}</details>" if rest else ""
    return Html(shown + more)
