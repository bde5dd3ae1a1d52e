"""A process that runs rows of a bench as ``sapwood.bench.pool`` asks for them; ``Server`` talks to it.

It imports once, then runs each row in a process of its own, as ``python -m sapwood.bench.worker SPEC`` would. Each line
of its input gets one line of answer: {"start": SPEC, "log": FILE} the row's process id, {"poll": ID} its exit code, or
null while it runs.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, BinaryIO, NoReturn


class Server:
    """The process, as the tests see it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def ask(self, **question: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, command: Sequence[str], stdout: BinaryIO, **_: Any) -> Row:
        """In place of ``subprocess.Popen``: the row that the command is for, its output in the same log."""
        assert list(command[:-1]) == [sys.executable, "-m", "sapwood.bench.worker"]
        return Row(self, self.ask(start=json.loads(command[-1]), log=stdout.name))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


class Row:
    """What the pool needs of a ``subprocess.Popen``."""

    def __init__(self, server: Server, pid: int) -> None:
        self.server, self.pid = server, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.server.ask(poll=self.pid)
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


def child(spec: dict[str, Any], log: str) -> NoReturn:
    from sapwood.bench import worker

    os.setsid()
    with open(log, "ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    code = 1
    try:
        code = worker.main(spec)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    import accelerate  # noqa: F401
    from PIL import Image

    import sapwood.bench.worker  # noqa: F401
    from sapwood.backbones import create_backbone

    create_backbone("random:dinov2-tiny", 28)  # what the first use imports
    Image.init()  # and what the first picture does
    gc.collect()
    gc.freeze()  # collecting garbage would copy every page that the children share
    for line in sys.stdin:
        question = json.loads(line)
        if "start" in question:
            answer: int | None = os.fork()
            if not answer:
                child(question["start"], question["log"])
        else:
            number, status = os.waitpid(question["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if number else None
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
