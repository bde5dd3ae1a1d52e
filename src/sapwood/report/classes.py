"""The section on single classes: how well each is known, and what the last round did to it."""

from __future__ import annotations

from sapwood.report.content import ReportData
from sapwood.report.markup import Column, Html, percent, section, swatch, table, text
from sapwood.wording import counted

CLASSES_LISTED = 24  # in the table of classes, before it is folded away
_ROUNDING = 0.0005  # a tenth of a point is printed


def each_class(report: ReportData, round_names: list[Html]) -> str:
    """The section; empty where nothing was measured after the last round.

    Args:
        report: what to show.
        round_names: of each round, as it is shown elsewhere.
    """
    if not report.per_class:
        return ""
    measure = report.measure.removeprefix("mean ")
    measure = measure[:1].upper() + measure[1:]
    facts = "".join(
        f"<div><dt>{text(name)}</dt><dd>{percent(value)}</dd></div>" for name, value in report.means.items()
    )
    round_of: dict[str, Html] = {}
    for task, round_name in zip(report.tasks, round_names, strict=True):
        round_of = dict.fromkeys(task.classes, round_name) | round_of  # a class is of the round that brought it
    columns = [Column("class"), Column("round"), Column(measure, number=True), Column("")]
    if report.before:
        columns += [Column("before", number=True), Column("change", number=True)]
    if report.counts:
        columns.append(Column("pixels measured" if report.counted == "pixels" else "pictures right", number=True))
    rows = [
        [_class_name(report, name), round_of.get(name, ""), percent(value), _bar(value)]
        + ([percent(report.before.get(name)), _change(report, name)] if report.before else [])
        + ([_counts(report, name)] if report.counts else [])
        for name, value in report.per_class.items()
    ]
    listed = table(f"{measure} of each class after the last round, in percent", columns, rows, "classes")
    if len(rows) > CLASSES_LISTED:
        listed = Html(f"<details><summary>all {len(rows)} classes</summary>\n{listed}</details>\n")
    shown = f'<dl class="facts">{facts}</dl>\n' if facts else ""
    return section(f"{measure} of each class", shown, _fallen(report), listed)


def _fallen(report: ReportData) -> str:
    """A sentence on the classes that lost something in the last round."""
    if not report.before:
        return ""
    changes = {name: change for name in report.per_class if (change := _difference(report, name)) is not None}
    if not changes:
        return ""
    lost = sorted((change, name) for name, change in changes.items() if change < -_ROUNDING)
    compared = f"{counted(len(changes), 'class', 'classes')} measured after round {report.before_round!r} too"
    if not lost:
        said = f"Of {compared}, none has lost anything since."
    else:
        most = f"{lost[0][1]!r} most, by {-100 * lost[0][0]:.1f} points"
        said = f"Of {compared}, {len(lost)} lost something since: {most}."
    if any(report.counts.get(name) != count for name, count in report.counts_before.items()):
        said += " Where the counts differ, other pictures were measured."
    return f'<p class="note">{text(said)}</p>\n'


def _difference(report: ReportData, name: str) -> float | None:
    now, before = report.per_class.get(name), report.before.get(name)
    return None if now is None or before is None else now - before


def _change(report: ReportData, name: str) -> Html:
    change = _difference(report, name)
    if change is None:
        return text("new" if name not in report.before and report.per_class.get(name) is not None else "–")
    if abs(change) < _ROUNDING:
        return text("0.0")
    return Html(f'<strong class="lost">−{-100 * change:.1f}</strong>') if change < 0 else text(f"+{100 * change:.1f}")


def _counts(report: ReportData, name: str) -> str:
    """How much of a class was measured; of pictures also how many were right, now and before."""
    count, before = report.counts.get(name, 0), report.counts_before.get(name, 0)
    if report.counted == "pixels":
        return f"{count:,}" + (f" (before: {before:,})" if before and before != count else "")
    told = f"{_right(report.per_class.get(name), count)} of {count:,}"
    return told + (f" (before: {_right(report.before.get(name), before)} of {before:,})" if before else "")


def _class_name(report: ReportData, name: str) -> Html:
    """With its colour in the masks."""
    return Html(f"{swatch(report.classes, name)} {text(name)}") if report.counted == "pixels" else text(name)


def _right(share: float | None, count: int) -> str:
    return f"{round((share or 0.0) * count):,}"


def _bar(value: float | None) -> Html:
    return Html(f'<span class="bar" style="--share:{100 * (value or 0):.0f}%"></span>')
