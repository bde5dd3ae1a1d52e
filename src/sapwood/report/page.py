"""The report's page, section by section."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sapwood.report.chart import course_chart
from sapwood.report.classes import each_class
from sapwood.report.content import ReportData, ReportTask
from sapwood.report.frame import document, header
from sapwood.report.gallery import masks, samples
from sapwood.report.markup import (
    Column,
    Html,
    amount,
    duration,
    heat,
    one_line,
    pairs,
    percent,
    section,
    size,
    table,
    text,
)
from sapwood.report.route_maps import routes
from sapwood.wording import counted

CLASSES_SHOWN = 12  # of a round, before the rest is folded away


def render(report: ReportData) -> str:
    """The whole report as one HTML document; the same data gives the same bytes."""
    names = [_task_name(*pair) for pair in enumerate(report.tasks)]
    sections = (
        _numbers(report),
        _matrix(report),
        _course(report),
        each_class(report, names),
        samples(report.samples),
        masks(report.masks, report.classes),
        _rounds(report),
        routes(report.routes, names),
        _pairs("Costs", "cost", report.costs, amount),
        _pairs("Settings", "setting", report.settings, one_line),
    )
    return document(report.title, f"{_header(report)}<main>\n{''.join(sections)}</main>\n")


def _header(report: ReportData) -> str:
    facts = {
        "Version": report.version,
        "Method": report.method,
        "Backbone": report.backbone,
        "Created": report.created,
        "Learned": f"{counted(len(report.classes), 'class', 'classes')} in {counted(len(report.tasks), 'round')}",
    }
    return header(report.title, facts)


def _numbers(report: ReportData) -> str:
    if not report.numbers:
        return ""
    items = "".join(
        f"<div><dt>{text(name)}</dt><dd>{percent(value)}{'' if value is None else ' <small>%</small>'}</dd></div>"
        for name, value in report.numbers.items()
    )
    remark = f'<p class="note">{text(report.remark)}</p>\n' if report.remark else ""
    return section("Summary", f'<dl class="tiles">{items}</dl>\n', remark)


def _task_name(index: int, task: ReportTask) -> Html:
    return Html(f'<span class="index">{index + 1}</span> <span class="name">{text(task.name)}</span>')


def _matrix(report: ReportData) -> str:
    measure = _capital(report.measure)
    if not report.tasks:
        return section(f"{measure} matrix", "<p>Nothing was learned yet.</p>\n")
    shown = [index for index, task in enumerate(report.tasks) if task.classes]
    columns = [
        Column("after round"),
        *(Column(_task_name(index, report.tasks[index]), number=True) for index in shown),
    ]
    rows = [
        [_task_name(after, task), *(_heat(report, after, on) for on in shown)]
        for after, task in enumerate(report.tasks)
    ]
    legend = (
        "Rows: after learning a round. Columns: the round whose classes were measured, among all classes known then."
    )
    marked = {task.measured_on for task in report.tasks}
    hint = (
        " v: on the round's own validation pictures and among its own classes alone, as no test pictures were given."
        if "validation" in marked
        else ""
    )
    if "probe" in marked:
        hint += " p: on pictures that the state keeps to measure on, which were never learned."
    key = '<span class="swatch missing"></span> not measured.'
    return section(
        f"{measure} matrix",
        table(f"{measure} in percent", columns, rows, "heat"),
        f'<p class="note">{legend} {key}{hint}</p>\n',
    )


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _heat(report: ReportData, after: int, on: int) -> Html:
    source = report.tasks[after].measured_on
    marks = {"validation": "validation pictures", "probe": "pictures that the state keeps"}
    mark = f'<abbr title="{marks[source]}">{source[0]}</abbr>' if source in marks else ""
    return heat(report.accuracy[after][on], mark)


def _course(report: ReportData) -> str:
    overall = report.after_each or ()
    if all(value is None for value in overall) and all(cell is None for row in report.accuracy for cell in row):
        return ""
    measure = _capital(report.measure)
    words = f"Line chart of the {report.measure} after each round; the table below has the numbers"
    chart = course_chart(report.accuracy, overall, report.measure, text(words), report.breaks)
    rows = [[_task_name(index, report.tasks[index]), percent(value)] for index, value in enumerate(overall)]
    return section(
        f"{measure} after each round",
        f'<div class="scroll" tabindex="0" role="region" aria-label="Chart">{chart}</div>\n'
        '<p class="note">Thick: the classes of all rounds so far. Thin: those of each round on its own.</p>\n',
        table(
            f"{measure} over all rounds so far, in percent",
            [Column("after round"), Column(report.measure, number=True)],
            rows,
        ),
    )


def _rounds(report: ReportData) -> str:
    if not report.tasks:
        return ""
    names = ("pictures", "time", "peak memory", "time to predict a picture", "trained parameters", "stored")
    columns = [Column("round"), Column("classes"), *(Column(name, number=True) for name in names)]
    rows = [
        [
            _task_name(index, task),
            _classes(task),
            f"{task.images:,}",
            duration(task.seconds),
            "not recorded" if task.peak_memory is None else size(task.peak_memory),
            duration(task.seconds_per_picture),
            f"{task.trainable_parameters:,}",
            size(task.bytes),
        ]
        for index, task in enumerate(report.tasks)
    ]
    return section("Rounds", table("What was learned, and what it took", columns, rows, "rounds"))


def _classes(task: ReportTask) -> Html:
    again = Html(f"{'<br>' if task.classes else ''}more of {_listed(task.again)}" if task.again else "")
    return Html(_listed(task.classes) + again)


def _listed(names: tuple[str, ...]) -> Html:
    shown = ", ".join(text(name) for name in names[:CLASSES_SHOWN])
    rest = names[CLASSES_SHOWN:]
    if not rest:
        return Html(shown)
    hidden = ", ".join(text(name) for name in rest)
    return Html(f"{shown}<details><summary>and {len(rest)} more</summary>{hidden}</details>")


def _pairs(title: str, first: str, values: Mapping[str, Any], shown: Callable[[Any], str]) -> str:
    return section(title, pairs(title, first, values, shown)) if values else ""
