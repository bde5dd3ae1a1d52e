"""The report's page, section by section."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from sapwood.report.chart import accuracy_chart
from sapwood.report.content import ReportData, ReportTask, Sample
from sapwood.report.markup import Column, Html, duration, one_line, percent, png, size, table, text

HEAT_STEPS = 10  # shades of the heat map; the style sheet has one rule for each
CLASSES_SHOWN = 12  # of a task, before the rest is folded away
# The page may load nothing at all: a class name that smuggled markup past the escaping would still be inert.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def render(report: ReportData) -> str:
    """The whole report as one HTML document; the same data gives the same bytes."""
    style = files("sapwood.report").joinpath("style.css").read_text(encoding="utf-8")
    sections = (
        _numbers(report),
        _matrix(report),
        _course(report),
        _samples(report),
        _tasks(report),
        _pairs("Costs", "cost", report.costs),
        _pairs("Settings", "setting", report.settings),
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{text(report.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"{_header(report)}<main>\n{''.join(sections)}</main>\n</body>\n</html>\n"
    )


def _section(title: str, *parts: str) -> Html:
    anchor = title.lower().replace(" ", "-")
    return Html(
        f'<section aria-labelledby="{anchor}">\n<h2 id="{anchor}">{text(title)}</h2>\n'
        + "".join(parts)
        + "</section>\n"
    )


def _header(report: ReportData) -> str:
    facts = {
        "Version": report.version,
        "Method": report.method,
        "Backbone": report.backbone,
        "Created": report.created,
        "Learned": f"{_count(len(report.classes), 'class', 'classes')} in {_count(len(report.tasks), 'task', 'tasks')}",
    }
    items = "".join(f"<div><dt>{name}</dt><dd>{text(value)}</dd></div>" for name, value in facts.items())
    return f'<header>\n<h1>{text(report.title)}</h1>\n<dl class="facts">{items}</dl>\n</header>\n'


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _numbers(report: ReportData) -> str:
    if not report.numbers:
        return ""
    items = "".join(
        f"<div><dt>{text(name)}</dt><dd>{percent(value)}{'' if value is None else ' <small>%</small>'}</dd></div>"
        for name, value in report.numbers.items()
    )
    return _section("Summary", f'<dl class="tiles">{items}</dl>\n')


def _task_name(index: int, task: ReportTask) -> Html:
    return Html(f'<span class="index">{index + 1}</span> <span class="name">{text(task.name)}</span>')


def _matrix(report: ReportData) -> str:
    if not report.tasks:
        return _section("Accuracy matrix", "<p>Nothing was learned yet.</p>\n")
    columns = [Column("after task"), *(Column(_task_name(*pair), number=True) for pair in enumerate(report.tasks))]
    rows = [
        [_task_name(after, task), *(_heat(report, after, on) for on in range(len(report.tasks)))]
        for after, task in enumerate(report.tasks)
    ]
    legend = (
        "Rows: after learning a task. Columns: the task whose pictures were classified, among all classes known then."
    )
    marked = any(task.measured_on == "validation" for task in report.tasks)
    hint = " v: measured on the task's validation split, as no test set was given." if marked else ""
    key = '<span class="swatch missing"></span> not measured.'
    return _section(
        "Accuracy matrix",
        table("Accuracy in percent", columns, rows, "heat"),
        f'<p class="note">{legend} {key}{hint}</p>\n',
    )


def _heat(report: ReportData, after: int, on: int) -> Html:
    value = report.accuracy[after][on]
    if value is None:
        return Html('<td class="missing"><span class="aside">not measured</span></td>')
    validation = report.tasks[after].measured_on == "validation"
    mark = '<abbr title="validation split">v</abbr>' if validation else ""
    return Html(f'<td class="number h{round(HEAT_STEPS * value)}">{percent(value)}{mark}</td>')


def _course(report: ReportData) -> str:
    overall = report.after_each or ()
    if all(value is None for value in overall) and all(cell is None for row in report.accuracy for cell in row):
        return ""
    chart = accuracy_chart(report.accuracy, overall, "Line chart of the accuracies; the table below has the numbers")
    rows = [[_task_name(index, report.tasks[index]), percent(value)] for index, value in enumerate(overall)]
    return _section(
        "Accuracy after each task",
        f'<div class="scroll" tabindex="0" role="region" aria-label="Chart">{chart}</div>\n'
        '<p class="note">Thick: all tasks learned so far. Thin: each task on its own.</p>\n',
        table(
            "Accuracy over all tasks so far, in percent", [Column("after task"), Column("accuracy", number=True)], rows
        ),
    )


def _samples(report: ReportData) -> str:
    if not report.samples:
        return ""
    known = [sample for sample in report.samples if sample.true is not None]
    right = sum(sample.true == sample.predicted for sample in known)
    summary = f'<p class="note">{right} of these {len(known)} are right.</p>\n' if known else ""
    items = "".join(_sample(sample) for sample in report.samples)
    return _section("Sample predictions", summary, f'<ul class="samples">\n{items}</ul>\n')


def _sample(sample: Sample) -> str:
    if sample.true is None:
        kind, verdict = "open", "true class not known"
    elif sample.true == sample.predicted:
        kind, verdict = "right", '<span aria-hidden="true">✓</span> right'
    else:
        kind, verdict = "wrong", f'<span aria-hidden="true">✗</span> wrong, it is <b>{text(sample.true)}</b>'
    small = ' class="small"' if max(sample.image.shape[:2]) < 80 else ""
    name = f'<span class="path">{text(sample.name)}</span>' if sample.name else ""
    return (
        f'<li class="{kind}"><img src="{png(sample.image)}"{small} alt="{text(sample.name or "picture")}">'
        f"<p><b>{text(sample.predicted)}</b> {percent(sample.score, 0)} %</p><p>{verdict}</p>{name}</li>\n"
    )


def _tasks(report: ReportData) -> str:
    if not report.tasks:
        return ""
    columns = [
        Column("task"),
        Column("classes"),
        *(Column(name, number=True) for name in ("pictures", "time", "trained parameters", "size of its files")),
    ]
    rows = [
        [
            _task_name(index, task),
            _classes(task.classes),
            f"{task.images:,}",
            duration(task.seconds),
            f"{task.trainable_parameters:,}",
            size(task.bytes),
        ]
        for index, task in enumerate(report.tasks)
    ]
    return _section("Tasks", table("What was learned, and what it took", columns, rows, "tasks"))


def _classes(names: tuple[str, ...]) -> Html:
    shown = ", ".join(text(name) for name in names[:CLASSES_SHOWN])
    rest = names[CLASSES_SHOWN:]
    if not rest:
        return Html(shown)
    hidden = ", ".join(text(name) for name in rest)
    return Html(f"{shown}<details><summary>and {len(rest)} more</summary>{hidden}</details>")


def _pairs(title: str, first: str, values: Mapping[str, Any]) -> str:
    rows = [[key, one_line(value)] for key, value in values.items()]
    if not rows:
        return ""
    return _section(title, table(f"{title} by name", [Column(first), Column("value")], rows, f"pairs {first}"))
