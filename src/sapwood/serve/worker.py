"""One round in a process of its own: ``python -m sapwood.serve.worker``.

Reads one line of JSON (an ``Order``) from its input, learns, and writes lines of JSON to its output: ``start``,
``advance``, ``note``, and at the end ``done`` or ``failed``. When its input ends, whoever ordered the round wants it
stopped, or is gone: it writes a checkpoint and stops, so that nothing runs on unowned.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any, NoReturn

from sapwood.errors import ConfigError, Interrupted, SapwoodError
from sapwood.progress import Progress
from sapwood.serve.wording import restart_helps

if TYPE_CHECKING:
    from sapwood.learner import Learner

STOPPED = 143
"""Exit code of a worker that SIGTERM ended outside its round."""
UNFORESEEN = 70
"""Exit code after an error that is a bug; its traceback is on stderr."""
_EVERY = 0.15  # seconds between two lines about the same piece of work
_POLITE = 5  # added to the process's niceness: answers come first


@dataclass(frozen=True)
class Order:
    """What to learn.

    Attributes:
        state: the state folder.
        folder: labelled pictures, or pictures with masks; deleted at the end.
        pictures: pairs (what to call it, file inside ``folder``) that all show ``label``; empty: read ``folder``.
        label: the class of ``pictures``.
        task: name of the round; by default that of its only class, unless a round has it.
        training: fields of ``TrainingConfig``.
        device: where to compute.
        restart: throw away what is half learned.
        relearn: learn pictures again that were learned before.
        replace: throw it away if it is another round.
    """

    state: str
    folder: str
    pictures: list[tuple[str, str]] = field(default_factory=list)
    label: str | None = None
    task: str | None = None
    training: dict[str, Any] = field(default_factory=dict)
    device: str | None = None
    restart: bool = False
    relearn: bool = False
    replace: bool = False

    def line(self) -> bytes:
        """As the worker reads it."""
        return json.dumps(asdict(self)).encode() + b"\n"


class Lines(Progress):
    """Writes what happens as lines of JSON; somebody who no longer listens is no reason to fail."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._what, self._done, self._total, self._told = "", 0, 0, 0.0
        self.folder = ""

    def tell(self, event: str, **facts: Any) -> None:
        """Write one line."""
        line = json.dumps({"event": event, **facts}).encode() + b"\n"
        with suppress(OSError, ValueError):
            self._out.write(line)
            self._out.flush()

    def note(self, text: str) -> None:
        """One line worth reading."""
        self.tell("note", text=_without_folder(text, self.folder) if self.folder else text)

    def start(self, what: str, total: int, done: int = 0) -> None:
        """A piece of work begins."""
        self._what, self._done, self._total, self._told = what, done, total, time.monotonic()
        self.tell("start", what=what, total=total, done=done)

    def advance(self, units: int, **facts: float) -> None:
        """Some of it is done; not every step is worth a line."""
        self._done += units
        now = time.monotonic()
        if now - self._told >= _EVERY or self._done >= self._total:
            self._told = now
            known = {name: value if math.isfinite(value) else None for name, value in facts.items()}
            self.tell("advance", done=self._done, facts=known)


def learn(order: Order, progress: Progress) -> Learner:
    """Learn the round that is ordered.

    Raises:
        SapwoodError: what ``Learner.learn`` raises.
    """
    from sapwood.data.pictures import Picture
    from sapwood.data.sources import split_names
    from sapwood.learner import Learner

    folder = Path(order.folder)
    data: Any = str(folder)
    options: dict[str, Any] = {"task": order.task, "training": order.training or None, "progress": progress}
    options["relearn"] = order.relearn
    if order.pictures:
        data = [Picture(name, folder / file, order.label) for name, file in order.pictures]
    elif "test" in split_names(folder):
        options["test"] = data
    learner = Learner.open(order.state, device=order.device)
    if order.task is None and order.label not in (None, *(task["name"] for task in learner.record["tasks"])):
        options["task"] = order.label
    try:
        return learner.learn(data, restart=order.restart, **options)
    except ConfigError as error:
        if not (order.replace and restart_helps(str(error))):
            raise
        begun = learner.state.training.plan() or {}
        learned = learner.learn(data, restart=True, **options)
        progress.note(f"round {begun.get('task')!r}, which was half learned, has been dropped")
        return learned


def main() -> int:
    """Learn what the input says; the exit code."""
    # What libraries print must not come between the lines.
    progress = Lines(os.fdopen(os.dup(1), "wb", buffering=0))
    os.dup2(2, 1)
    given = sys.stdin.buffer.readline()
    if not given.strip():
        return STOPPED
    order = Order(**json.loads(given))
    progress.folder = order.folder
    _leave_when_asked(order.folder)
    _stop_when_input_ends()
    with suppress(OSError, AttributeError):
        os.nice(_POLITE)
    try:
        learner = learn(order, progress)
    except Interrupted as error:
        progress.tell("failed", error=str(error), stopped=True)
        return error.exit_code
    except SapwoodError as error:
        progress.tell("failed", error=_without_folder(str(error), order.folder))
        return error.exit_code
    except KeyboardInterrupt:  # asked twice
        progress.tell("failed", error="stopped; the state is unchanged", stopped=True)
        return STOPPED
    except Exception as error:
        traceback.print_exc()
        progress.tell("failed", error=f"something unforeseen: {type(error).__name__}: {error}; the state is unchanged")
        return UNFORESEEN
    finally:
        shutil.rmtree(order.folder, ignore_errors=True)
    progress.tell("done", version=learner.state.version.id)
    return 0


def _without_folder(text: str, folder: str) -> str:
    """A message without the place where uploads lie for a while."""
    return text.replace(f"{folder}{os.sep}", "").replace(folder, "the archive")


def _leave_when_asked(folder: str) -> None:
    """Outside the round, which has handlers of its own, SIGTERM ends the process on the spot.

    Nothing is being written then. An exception would not do: an import that it falls into may turn it into another.
    """

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(STOPPED)

    signal.signal(signal.SIGTERM, leave)


def _stop_when_input_ends() -> None:
    def watch() -> None:
        with suppress(OSError, ValueError):
            while os.read(0, 1 << 10):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
