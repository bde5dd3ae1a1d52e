"""``sapwood show`` and ``sapwood report``: what a state has learned."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sapwood.cli.options import AsJson, SkipBad, StateFolder
from sapwood.cli.screen import duration, listening, percent, print_json, shown_size, size, table
from sapwood.data.names import shown
from sapwood.errors import ConfigError
from sapwood.record import matrix_remarks, measured_rounds
from sapwood.wording import counted

if TYPE_CHECKING:
    from sapwood.report import ReportData
    from sapwood.state import State, Version

_HEAD = 2000  # bytes of a page among which a mark is looked for
_MANY = 6
_SOURCES = {"test": "", "validation": "on its validation pictures", "probe": "on pictures that the state keeps"}


def show(
    state: StateFolder,
    versions: Annotated[bool, typer.Option("--versions", help="List all versions too; they share files.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show rounds, classes, accuracy and costs."""
    from sapwood.state import State

    opened = State.open(state, whole=not versions)  # who looks for a way back need not have all of this one
    listed = list_versions(opened) if versions else []
    half = opened.training.half_learned(opened.version.record["tasks"])
    if as_json:
        from sapwood.state.description import describe

        print_json(describe(opened.version, half) | ({"versions": listed} if versions else {}))
        return
    print(f"{state}, version {opened.version.id}\n{summary(opened.version)}")
    if half is not None:
        print(f"\nround {shown(half)!r} is half learned: the same `learn` goes on with it, `undo` drops it")
    if versions:
        rows = [["", "version", "created", "stored", "note"]]
        rows += [
            ["*" if row["current"] else "", row["id"], row["created"], size(row["bytes"]), shown(row["note"])]
            for row in listed
        ]
        print(f"\n{table(rows, right=[3])}")


def report(
    state: StateFolder,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("report.html"),
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA", help="Labelled pictures, or pictures with masks, to show samples of; the state keeps none."
        ),
    ] = None,
    skip_bad: SkipBad = False,
) -> None:
    """Write a report, one self-contained HTML file."""
    from sapwood.learner import Learner
    from sapwood.report import gather, render
    from sapwood.report.frame import MARK
    from sapwood.state import State
    from sapwood.state.files import discard, encode, put, write_aside

    with _placing(output):
        if not output.parent.is_dir() or output.is_dir():
            raise ConfigError(f"--output {output}: must be a file in a folder that is there")
        if output.is_file() and (head := _head(output)) and MARK.encode() not in head:
            raise ConfigError(f"--output {output}: is there and no report, and would be lost; name another file")
        stream = output.exists() and not output.is_file()  # a device or a pipe, which nothing may replace
        place = output if stream else output.resolve()  # a link stays one: what it points to is replaced
        if not stream:  # fail before anything is computed
            discard(write_aside(place.parent, ""))
        if place.is_file():
            place.open("ab").close()

    def gathered(opened: State) -> ReportData:
        learner = Learner(opened)
        if data is not None:
            _ = learner.network  # first: what it says of a version and what it draws must be one
        return gather(learner, data, skip_bad=skip_bad, progress=progress)

    with listening() as progress:
        page = render(State.read(state, gathered))
    with _placing(output):
        if stream:
            place.write_bytes(encode(page))
        else:
            put(place, page)
    print(f"report: {place}")


@contextmanager
def _placing(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ConfigError(
            f"--output {output}: cannot be written ({error.strerror}); name a file in a folder that you may write to"
        ) from error


def list_versions(opened: State) -> list[dict[str, Any]]:
    """Every version that is still there, oldest first; ``bytes`` of its files, which versions share."""
    versions = opened.versions()
    return [
        {
            "id": version.id,
            "number": version.number,
            "created": version.record["created"],
            "note": version.record["note"],
            "current": version is versions[-1],
            "bytes": sum(entry["bytes"] for entry in version.record["files"].values()),
        }
        for version in versions
    ]


def summary(version: Version) -> str:
    """The same for people."""
    from sapwood.state.description import describe

    facts = describe(version)
    head = f"{facts['method']} on {facts['backbone']} at {shown_size(facts['image_size'])} px"
    if not facts["tasks"]:
        return f"{head}, nothing learned yet"
    head += f", {counted(len(facts['classes']), 'class', 'classes')}"
    if facts["probe"]["images"]:
        kept = f"{counted(facts['probe']['images'], 'picture')} ({size(facts['probe']['bytes'])})"
        head += f"\nkeeps {kept} to measure on; `sapwood probe` lists and removes them"
    rows = [["round", "pictures", "time", "peak", "a picture", "trained", "stored", "validation, %", "classes"]]
    rows += [
        [
            task["name"],
            str(task["images"]),
            duration(task["seconds"]),
            size(task["peak_memory"]) if task["peak_memory"] else "–",
            f"{1000 * task['seconds_per_picture']:.0f} ms",
            f"{task['trainable_parameters']:,}",
            size(task["bytes"]),
            percent(task["validation_accuracy"]),
            _some(task["classes"]),
        ]
        for task in facts["tasks"]
    ]
    return f"{head}\n\n{table(rows, right=range(1, 8))}\n\n{_matrix(facts, version.record)}"


def _matrix(facts: dict[str, Any], record: Mapping[str, Any]) -> str:
    columns = measured_rounds(record)
    names = [task["name"] for task in facts["tasks"]]
    rows = [["accuracy, %" if facts["kind"] == "classification" else "mean IoU, %", *(names[on] for on in columns), ""]]
    for name, row, source in zip(names, facts["accuracy"], facts["accuracy_on"], strict=True):
        cells = [percent(row[on]) if on < len(row) else "" for on in columns]
        told = _SOURCES[source] if any(cell is not None for cell in row) else "not measured"
        rows.append([f"after {name}", *cells, told])
    found = table(rows, right=range(1, len(columns) + 1))
    return "\n".join([found, *matrix_remarks(record)])


def _head(page: Path) -> bytes:
    with page.open("rb") as file:
        return file.read(_HEAD)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MANY} more" if len(names) > _MANY else ""
    return ", ".join(names[:_MANY]) + more
