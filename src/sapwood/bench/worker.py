"""One row in a process of its own: ``python -m sapwood.bench.worker SPEC``; memory and seconds are then the row's."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sapwood.bench.budget import with_epochs
from sapwood.bench.engines.base import TAKEN
from sapwood.bench.plan import Plan
from sapwood.bench.runner import run
from sapwood.bench.sharing import TRAINED, family
from sapwood.errors import SapwoodError
from sapwood.progress import Progress

_POLL = 0.5  # seconds between two looks at the parent
_PATIENCE = 5.0  # seconds that a process whose bench is gone has to write its checkpoint


class Lines(Progress):
    """A line for every piece of work, for the row's log."""

    def start(self, what: str, total: int, done: int = 0) -> None:
        """Say what begins."""
        print(f"{time.strftime('%H:%M:%S')} {what}: {total}", flush=True)

    def note(self, text: str) -> None:
        """Say it."""
        print(text, flush=True)


def stop_with_parent() -> None:
    """Ask this process to stop, with a checkpoint, once the bench that started it is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL)
        os.kill(os.getpid(), signal.SIGTERM)

    if os.name == "posix":
        threading.Thread(target=watch, daemon=True).start()


def main(spec: dict[str, Any]) -> int:
    """Run the row that ``plan``, ``row`` (its name), ``epochs`` (None: those of the plan) and ``out`` (its file)
    describe; ``jobs`` is how many run at once, ``alone`` whether its seconds count. Returns the exit code."""
    stop_with_parent()
    plan, out = Plan(**_plan_arguments(spec["plan"])), Path(spec["out"])
    rows, epochs = plan.rows(), spec["epochs"]
    row = rows[spec["row"]]
    own = family(row.run, plan.kind)
    shared = own is not None and sum(family(each.run, plan.kind) == own for each in rows.values()) > 1
    wanted = row.run if epochs is None else with_epochs(row.run, epochs)
    try:
        with FileLock(out.with_suffix(".lock"), timeout=_PATIENCE):
            marks = {"control": row.control, "jobs": spec["jobs"], "timing_valid": spec["alone"]}
            marks["budget_gmacs"] = plan.budget_gmacs
            trained = out.parent.parent / TRAINED if shared else None
            stream = plan.stream(row.run.seed)
            run(stream, wanted, out, progress=Lines(), memory={}, marks=marks, trained=trained)
    except Timeout:
        return TAKEN
    except SapwoodError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _plan_arguments(given: dict[str, Any]) -> dict[str, Any]:
    size = given["image_size"]
    return {**given, "methods": tuple(given["methods"]), "image_size": tuple(size) if isinstance(size, list) else size}


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
