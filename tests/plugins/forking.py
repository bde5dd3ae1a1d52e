"""Processes forked from the tests' own: real ones, which need not import anew, as a command's would for seconds."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

_PATIENCE = 120  # seconds


class Forked:
    """What is needed of a ``subprocess.Popen``; it leads a session of its own."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            number, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if number else None
        return self.returncode

    def wait(self) -> int:
        limit = time.monotonic() + _PATIENCE
        while (code := self.poll()) is None:
            assert time.monotonic() < limit, f"process {self.pid} does not end"
            time.sleep(0.05)
        return code

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def fork(work: Callable[[], int], stdout: int, stderr: int) -> Forked:
    """A process that does the work, which gives its exit code, and writes to these files."""
    if not (number := os.fork()):
        _run(work, stdout, stderr)
    return Forked(number)


def fork_command(*arguments: object, stderr: int) -> Forked:
    """``sapwood`` with these arguments; what it prints is thrown away, what it says goes to a file."""
    from sapwood.cli import main

    def command() -> int:
        try:
            main([str(each) for each in arguments])
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    with open(os.devnull, "wb") as nothing:
        return fork(command, nothing.fileno(), stderr)


def _run(work: Callable[[], int], stdout: int, stderr: int) -> NoReturn:
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # not what pytest looks at

        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)  # of the tests' process
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
