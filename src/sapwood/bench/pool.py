"""Rows at work: so many processes at once, each finished row on disk, and nothing lost when it is stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock

from sapwood.bench.budget import chosen_epochs
from sapwood.bench.plan import Plan
from sapwood.bench.worker import TAKEN
from sapwood.errors import ConfigError, Interrupted
from sapwood.progress import Progress
from sapwood.state.files import put
from sapwood.training import Stop, stop_on_signals

_POLL = 0.2  # seconds between two looks at the processes
_REQUEST = "bench.json"


def work(plan: Plan, out: Path, jobs: int, progress: Progress) -> tuple[list[dict[str, Any]], list[str]]:
    """Run all rows that are not there yet.

    Rows lie in ``out/rows``, one JSON file each, with a log beside it. A row that was cut short goes on where it
    stopped; several benches may share a folder.

    Returns:
        All rows of the folder, those of the plan first; and a line for each that failed, the others were run all the
        same.

    Raises:
        ConfigError: the folder holds rows of another benchmark or of other settings, or the budget is too small.
        Interrupted: a stop was asked for; the rows in work have written a checkpoint.
    """
    folder, rows = out / "rows", plan.rows()
    names = list(rows)
    waiting = [name for name in names if not (folder / f"{name}.json").exists()]
    epochs: dict[str, int] = {}
    if plan.budget_gmacs is not None:  # first: a folder whose budget is too small could not be used with another
        epochs = chosen_epochs(plan, {name: rows[name] for name in waiting}, progress)
    _claim(plan, out)
    plan.stream(0)  # missing data are found now
    folder.mkdir(exist_ok=True)
    progress.start("rows", len(names), len(names) - len(waiting))
    failed: list[str] = []
    running: dict[str, subprocess.Popen[bytes]] = {}
    with stop_on_signals() as stop:
        try:
            while waiting or running:
                while waiting and len(running) < jobs and not stop.requested:
                    name = waiting.pop(0)
                    running[name] = _start(plan, name, folder, jobs, epochs.get(name))
                time.sleep(_POLL)
                for name, process in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[name]
                    if process.returncode:
                        failed.append(_failure(name, process.returncode, folder))
                    else:
                        progress.note(_result(folder / f"{name}.json"))
                    progress.advance(1)
                if stop.requested:
                    _end(running, stop)
        finally:
            for process in running.values():
                process.kill()
    progress.finish()
    there = [name for name in names if (folder / f"{name}.json").exists()]
    there += sorted(file.stem for file in folder.glob("*.json") if file.stem not in names)
    return [json.loads((folder / f"{name}.json").read_text("utf-8")) for name in there], failed


def _claim(plan: Plan, out: Path) -> None:
    """Remember what the folder is for, or see that it is for this."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"--out {out} is a file; name a folder") from None
    wanted, file = plan.fingerprint(), out / _REQUEST
    with FileLock(file.with_suffix(".lock")):
        if not file.exists():
            put(file, json.dumps(wanted, indent=1) + "\n")
            return
        has = json.loads(file.read_text("utf-8"))
    faults = [f"{key}={has.get(key)}, not {value}" for key, value in wanted.items() if has.get(key) != value]
    if faults:
        raise ConfigError(f"--out {out} holds rows of {'; '.join(faults)}; name another folder")


def _start(plan: Plan, name: str, folder: Path, jobs: int, epochs: int | None) -> subprocess.Popen[bytes]:
    spec = {"plan": asdict(plan), "row": name, "out": str(folder / f"{name}.json"), "jobs": jobs, "epochs": epochs}
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    with open(folder / f"{name}.log", "ab") as log:
        command = [sys.executable, "-m", "sapwood.bench.worker", json.dumps(spec)]
        # A group of its own: Ctrl-C reaches this process alone, which then asks the rows to stop.
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def _end(running: dict[str, subprocess.Popen[bytes]], stop: Stop) -> None:
    """Ask the processes to stop, wait until they have written their checkpoints, and say so."""
    for process in running.values():
        process.terminate()
    for process in running.values():
        process.wait()
    running.clear()
    raise Interrupted("stopped; finished rows are kept, the same command goes on with the others")


def _failure(name: str, code: int, folder: Path) -> str:
    log = folder / f"{name}.log"
    if code == TAKEN:
        return f"row {name} is being run by another process"
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    last = lines[-1].removeprefix("error: ") if lines else f"exit code {code}"
    return f"row {name} failed: {last} (see {log})"


def _result(file: Path) -> str:
    row = json.loads(file.read_text("utf-8"))
    return f"{file.stem}: {100 * (row['last_accuracy'] or 0):.1f} % after {row['train_seconds']:.0f} s of training"
