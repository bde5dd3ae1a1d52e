"""Rows of a bench in processes forked from the tests' own; ``python -m sapwood.bench.worker SPEC`` imports anew."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, BinaryIO, NoReturn

import pytest


class Row:
    """What the pool needs of a ``subprocess.Popen``."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            number, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if number else None
        return self.returncode

    def wait(self) -> None:
        while self.poll() is None:
            time.sleep(0.05)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class Rows:
    """Those that were started, the latest last."""

    def __init__(self) -> None:
        self.begun: list[Row] = []

    def start(self, command: Sequence[str], stdout: BinaryIO, **_: Any) -> Row:
        """In place of ``subprocess.Popen``: the row that the command is for, its output in the same log."""
        assert list(command[:-1]) == [sys.executable, "-m", "sapwood.bench.worker"]
        import sapwood.bench.worker  # noqa: F401  (once for all rows)

        if not (number := os.fork()):
            _run(json.loads(command[-1]), stdout)
        self.begun.append(Row(number))
        return self.begun[-1]


def _run(spec: dict[str, Any], log: BinaryIO) -> NoReturn:
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
        with open(log.name, "ab") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # not what pytest looks at

        from accelerate.state import AcceleratorState

        from sapwood.bench import worker

        AcceleratorState._reset_state(reset_partial_state=True)  # of the tests' process
        code = worker.main(spec)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@pytest.fixture
def forked_rows(monkeypatch: pytest.MonkeyPatch) -> Rows:
    """Benches of this process run their rows so; where torch has a GPU, whose threads outlive no fork, as ever."""
    import torch

    from sapwood.bench.engines import process

    rows = Rows()
    if hasattr(os, "fork") and not torch.cuda.is_available():
        monkeypatch.setattr(process, "subprocess", SimpleNamespace(Popen=rows.start))
    return rows
