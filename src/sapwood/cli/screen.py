"""What people see: errors, tables, JSON on stdout; progress on stderr."""

from __future__ import annotations

import errno
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sapwood.data.names import shown
from sapwood.errors import Interrupted, SapwoodError
from sapwood.progress import Progress

_EVERY = 10.0
"""Seconds between two lines where no bar can be drawn."""


def complain(line: str) -> None:
    """One line on stderr."""
    print(f"error: {line}", file=sys.stderr)


def error_line(error: Exception) -> tuple[str, int]:
    """What to say of an error, and the exit code."""
    first = shown((str(error).strip() or type(error).__name__).split("\n")[0])
    if isinstance(error, SapwoodError):
        return shown(error), error.exit_code
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory ({first}); lower --batch-size or --image-size", 1
    if isinstance(error, OSError) and error.errno is not None:
        where = f": {shown(error.filename)}" if error.filename else ""
        remedy = "; free some space and run the command again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return f"{error.strerror}{where}{remedy}", 1
    return f"{type(error).__name__}: {first}; this is a bug, run again with --debug", 1


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout; ASCII, so that it survives every encoding."""
    print(json.dumps(value, allow_nan=False))


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Aligned columns; those numbered in ``right`` are flush right.

    >>> print(table([["a", "10"], ["bb", "7"]], right=[1]))
    a   10
    bb   7
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def shown_size(size: int | Sequence[int]) -> str:
    """Pixels of a view.

    >>> shown_size(224), shown_size([168, 224])
    ('224', '168x224')
    """
    return str(size) if isinstance(size, int) else "x".join(map(str, size))


def percent(fraction: float | None) -> str:
    """A fraction as per cent; a dash where nothing was measured.

    >>> percent(0.975), percent(None)
    ('97.5', '–')
    """
    return "–" if fraction is None else f"{100 * fraction:.1f}"


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(7.25), duration(185)
    ('7.2 s', '3 min 05 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def size(count: int) -> str:
    """Bytes for people.

    >>> size(512), size(1_340_000)
    ('512 B', '1.3 MB')
    """
    if count < 1000:
        return f"{count} B"
    return f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"


@contextmanager
def listening() -> Iterator[Progress]:
    """Progress on stderr: a bar on a terminal, else a line now and then. Ctrl-C becomes one line too."""
    progress: LineProgress = BarProgress() if sys.stderr.isatty() else LineProgress()
    try:
        yield progress
    except KeyboardInterrupt:
        raise Interrupted("stopped; the state is unchanged") from None
    finally:
        progress.close()


class LineProgress(Progress):
    """Notes, and a line every ten seconds of work."""

    def __init__(self) -> None:
        self.what = ""
        self.total = self.done = self.first = 0
        self.began = self.told = time.monotonic()
        self.facts = ""

    def note(self, text: str) -> None:
        """Print a line."""
        print(shown(text), file=sys.stderr, flush=True)

    def start(self, what: str, total: int, done: int = 0) -> None:
        """A piece of work begins."""
        self.what, self.total, self.done, self.first, self.facts = what, total, done, done, ""
        self.began = self.told = time.monotonic()

    def advance(self, units: int, **facts: float) -> None:
        """Some of it is done."""
        self.done += units
        if facts:
            self.facts = "".join(f", {name} {value:.3f}" for name, value in facts.items())
        now = time.monotonic()
        if now - self.told >= _EVERY and self.done < self.total:
            self.told = now
            left = (now - self.began) / max(1, self.done - self.first) * (self.total - self.done)
            self.note(f"{self.what}: {self.done}/{self.total}{self.facts}, {duration(left)} left")

    def finish(self) -> None:
        """It is done; training, which has a loss, gets a line."""
        if self.facts:
            self.note(f"{self.what}: {self.done}/{self.total}{self.facts}, {duration(time.monotonic() - self.began)}")

    def close(self) -> None:
        """Nothing follows."""


class BarProgress(LineProgress):
    """The same with a bar that goes when its work is done."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        facts = TextColumn("{task.fields[facts]}", markup=False)
        self._bars = Bars(*columns, TimeRemainingColumn(), facts, console=self._console, transient=True)
        self._bars.start()

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(shown(text), markup=False, highlight=False, soft_wrap=True)

    def start(self, what: str, total: int, done: int = 0) -> None:
        """Draw a bar."""
        super().start(what, total, done)
        self._drop()
        self._bars.add_task(what, total=total, completed=done, facts="")

    def advance(self, units: int, **facts: float) -> None:
        """Move it on."""
        self.told = time.monotonic()  # the bar says it
        super().advance(units, **facts)
        for number in self._bars.task_ids:
            self._bars.update(number, completed=self.done, facts=self.facts.removeprefix(", "))

    def finish(self) -> None:
        """Remove it."""
        self._drop()
        super().finish()

    def close(self) -> None:
        """Give the terminal back."""
        self._bars.stop()

    def _drop(self) -> None:
        for number in self._bars.task_ids:
            self._bars.remove_task(number)
