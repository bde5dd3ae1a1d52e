"""The worker's process: how it is started and ended, and what is said of how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

GRACE = 30.0
"""Seconds that a worker may take for its last checkpoint."""
_COMMAND = (sys.executable, "-m", "sapwood.serve.worker")


@contextmanager
def started(errors: IO[Any]) -> Iterator[subprocess.Popen[bytes]]:
    """A worker that waits for its order; it is gone when the block is left.

    Args:
        errors: a file for what it prints to stderr.
    """
    source = str(Path(__file__).parents[2])  # the worker must run this very code, installed or not
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    # A session of its own: Ctrl-C at the terminal is the server's, which tells its worker once.
    process = subprocess.Popen(
        _COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


def insist(process: subprocess.Popen[bytes]) -> None:
    """Wait for a worker that was asked to stop, and not for ever."""
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()


def died(code: int) -> str:
    """How a process ended, in words.

    >>> died(-9)
    'SIGKILL, which the system sends when memory runs out'
    >>> died(-11), died(3)
    ('SIGSEGV', 'exit code 3')
    """
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
    return f"{name}, which the system sends when memory runs out" if name == "SIGKILL" else name
