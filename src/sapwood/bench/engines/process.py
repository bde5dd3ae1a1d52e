"""Runs as processes of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from sapwood.bench.engines.base import End, Engine, Job, Options


def launch(
    spec: Mapping[str, Any],
    log: Path,
    threads: int,
    environment: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> subprocess.Popen[bytes]:
    """The process of a run.

    Args:
        spec: what ``sapwood.bench.worker`` takes.
        log: gets its output at the end.
        threads: of torch, unless the environment says how many.
        environment: of the process; None is this one's.
        cwd: folder that relative paths start from; None is this process's.
    """
    said = os.environ if environment is None else environment
    with open(log, "ab") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "sapwood.bench.worker", json.dumps(spec)],
            stdout=stream,
            stderr=stream,
            env={"OMP_NUM_THREADS": str(threads), **said},
            cwd=cwd,
            # A group of its own: Ctrl-C reaches the bench alone, which then asks the rows to stop.
            start_new_session=True,
        )


class Processes(Engine):
    """So many processes at once; they share the machine's cores."""

    takes: ClassVar[frozenset[str]] = frozenset({"jobs"})

    def __init__(self, options: Options) -> None:
        self.jobs = options.jobs or 1
        self.alone = self.jobs == 1

    def start(self, spec: Mapping[str, Any], log: Path) -> Job:
        """Start a run."""
        return _Child(launch(spec, log, max(1, (os.cpu_count() or 1) // self.jobs)))


class _Child:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def poll(self) -> End | None:
        code = self._process.poll()
        return None if code is None else End(code)

    def stop(self) -> None:
        self._process.terminate()

    def wait(self) -> None:
        self._process.wait()

    def kill(self) -> None:
        self._process.kill()
