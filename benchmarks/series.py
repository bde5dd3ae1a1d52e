"""What the benchmarks that train share: many runs into one folder, and how their numbers are written."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sapwood.progress import Progress


class Lines(Progress):
    """One line for every piece of work."""

    def start(self, what: str, total: int, done: int = 0) -> None:
        """Print it."""
        print(f"{time.strftime('%H:%M:%S')}   {what}: {total}", flush=True)


def work_through(names: Iterable[str], out: Path, run: Callable[[str, Path], dict[str, Any]], shows: str) -> None:
    """Do all runs whose file is not there; several processes share the work, a run that was cut short goes on.

    Args:
        names: of the runs, one file each.
        out: folder of the files.
        run: does one, given its name and its file.
        shows: key of the fraction that is printed when one is done.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        file = out / f"{name}.json"
        if file.exists():
            continue
        try:
            with FileLock(file.with_suffix(".lock"), timeout=0):
                print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
                row = run(name, file)
                print(f"{time.strftime('%H:%M:%S')}   {shows} {100 * row[shows]:.1f}", flush=True)
        except Timeout:
            continue


def spread(fractions: list[float | None]) -> str:
    """Mean and standard deviation over seeds, in percent; a dash where one was not measured."""
    values = [100 * fraction for fraction in fractions if fraction is not None]
    if not values or len(values) < len(fractions):
        return "–"
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"
