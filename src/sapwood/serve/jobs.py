"""Rounds that were asked for: a queue, and one worker process at a time that learns them."""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from sapwood.data.names import shown
from sapwood.errors import SapwoodError, StateError
from sapwood.serve.process import GRACE, died, insist, started
from sapwood.serve.wording import restart_helps, worded
from sapwood.serve.worker import UNFORESEEN, Order
from sapwood.state import State, Version

_log = logging.getLogger("sapwood.serve")

REMEMBERED = 200
"""Jobs that are over and may still be asked for."""
NOTES = 50
"""Lines of a job that are remembered."""


class QueueFull(SapwoodError):
    """As many jobs wait as may wait."""


class Busy(SapwoodError):
    """A job is learning, or waits to."""


@dataclass
class Job:
    """A round that somebody asked for; ``as_json`` is what a client sees.

    ``restart_helps``: it failed because another round is half learned; sent again with ``restart``, it would be begun.
    """

    id: str
    order: Order
    teaches: str
    submitted: str
    status: str = "queued"
    version: str | None = None
    error: str | None = None
    restart_helps: bool = False
    started: str | None = None
    ended: str | None = None
    progress: dict[str, Any] = field(default_factory=lambda: {"what": None, "done": 0, "total": 0, "notes": []})
    revision: int = 0

    @property
    def over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in ("done", "failed")

    def as_json(self) -> dict[str, Any]:
        """Plain values; ``progress`` is that of the present piece of work."""
        names = ("status", "teaches", "version", "error", "restart_helps", "submitted", "started", "ended")
        progress = {**self.progress, "notes": list(self.progress["notes"])}
        return {"job": self.id, **{name: getattr(self, name) for name in names}, "progress": progress}


class Jobs:
    """The queue of one state.

    Args:
        state: the state folder.
        limit: most jobs that wait.
        committed: called in the worker's thread once a round is in the state, before the job is said to be done; a
            client that hears of it then gets answers of the new version.
    """

    def __init__(self, state: Path, limit: int, committed: Callable[[], None] = lambda: None) -> None:
        self._state, self._limit, self._committed = state, limit, committed
        self._jobs: dict[str, Job] = {}
        self._changed = threading.Condition()
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._left: dict[str, Any] | None = None
        self._foreign: dict[str, Any] | None = None
        self._closed = False

    @property
    def full(self) -> bool:
        """Whether no more may wait."""
        with self._changed:
            return self._waiting() >= self._limit

    @property
    def closed(self) -> bool:
        """Whether nothing will be learned any more."""
        return self._closed

    def submit(self, order: Order, teaches: str) -> dict[str, Any]:
        """Queue a round, as ``as_json`` shows it; its folder is the queue's to delete from now on.

        Raises:
            QueueFull: try later; the folder stays the caller's.
        """
        with self._changed:
            if self._closed:
                raise QueueFull("the server is stopping; teach again once it is back")
            if self._waiting() >= self._limit:
                raise QueueFull(f"{self._limit} jobs wait already, more may not; try again when one is done")
            job = Job(secrets.token_hex(8), order, teaches, _now())
            self._jobs[job.id] = job
            for old in [one.id for one in self._jobs.values() if one.over][:-REMEMBERED]:
                del self._jobs[old]
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="sapwood-jobs", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            return job.as_json()

    def get(self, identifier: str) -> tuple[int, dict[str, Any]] | None:
        """Revision (it grows with every change) and present state of a job; None if there is no such job."""
        with self._changed:
            job = self._jobs.get(identifier)
            return None if job is None else (job.revision, job.as_json())

    def list(self) -> list[dict[str, Any]]:
        """All jobs that are remembered, the newest first."""
        with self._changed:
            return [job.as_json() for job in reversed(self._jobs.values())]

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Nothing is learned meanwhile; for what changes the state by other means.

        Raises:
            Busy: something is being learned, or waits to be.
        """
        with self._changed:
            active = [job for job in self._jobs.values() if not job.over]
            if active or not self._writing.acquire(blocking=False):
                raise Busy("a job is learning or waits to; wait until it is over, then try again")
        try:
            yield
        finally:
            self._writing.release()

    def halt(self) -> None:
        """Let the worker write a checkpoint and stop; nothing new is begun, and who follows a job hears its end."""
        with self._changed:
            first, self._closed = not self._closed, True
            process = self._process
            self._changed.notify_all()
        if first and process is not None:  # once: a second signal would not wait for the checkpoint
            process.terminate()

    def close(self) -> None:
        """``halt``, and return when no process is left; what waited has failed."""
        self.halt()
        with self._changed:
            process = self._process
        if process is not None:
            insist(process)
        if self._thread is not None:
            self._thread.join(GRACE)

    def _work(self) -> None:
        while True:
            with self._changed:
                while (job := self._next()) is None and not self._closed:
                    self._changed.wait()
                if job is None:
                    return
            with self._writing:
                if self._closed:
                    self._end(job, "failed", error="the server stopped before this was begun; teach it again")
                else:
                    self._learn(job)
            shutil.rmtree(job.order.folder, ignore_errors=True)

    def _waiting(self) -> int:
        return sum(job.status == "queued" for job in self._jobs.values())

    def _next(self) -> Job | None:
        return next((job for job in self._jobs.values() if job.status == "queued"), None)

    def _learn(self, job: Job) -> None:
        """Run one worker to its end; whatever happens to it ends up in the job."""
        try:
            before = State.open(self._state).version
            order = job.order
            there = self._plan()
            own = there is not None and there == self._left
            if own:
                order = replace(order, replace=True)
            self._left, self._foreign = None, None if own else there
            with TemporaryFile() as errors, started(errors) as process:
                with self._changed:
                    self._process = process
                    self._touch(job, status="running", started=_now())
                    closed = self._closed
                if closed:
                    process.terminate()
                with suppress(OSError):
                    assert process.stdin is not None
                    process.stdin.write(order.line())
                    process.stdin.flush()
                said = self._listen(job, process)
                code = process.wait()
                if not (said or self._closed) or code == UNFORESEEN:
                    errors.seek(0)
                    facts = {"job": job.id, "code": code, "stderr": _tail(errors.read())}
                    _log.error("worker died", extra={"fields": facts})
            self._conclude(job, before, said, code)
        except Exception as error:  # the queue must go on
            _log.exception("job failed", extra={"fields": {"job": job.id}})
            told = str(error) if isinstance(error, SapwoodError) else f"{type(error).__name__}: {error}"
            self._end(job, "failed", error=shown(told))
        finally:
            with self._changed:
                self._process = None

    def _listen(self, job: Job, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        """Follow what the worker says; its last word, or nothing."""
        assert process.stdout is not None
        last: dict[str, Any] = {}
        for line in process.stdout:
            try:
                said = json.loads(line)
                event = said.pop("event")
            except (ValueError, KeyError, TypeError, AttributeError):
                break  # half a line of a worker that died
            if event in ("done", "failed"):
                last = {"event": event, **said}
                continue
            with self._changed:
                notes = job.progress["notes"]
                if event == "note":
                    notes.append(shown(worded(said["text"], self._state)))
                    del notes[:-NOTES]
                elif event == "start":
                    job.progress = {**said, "notes": notes}
                else:
                    job.progress |= {"done": said["done"], **said["facts"]}
                self._touch(job)
        return last

    def _plan(self) -> dict[str, Any] | None:
        """Of the round that is half learned; rounds that somebody else began are never thrown away unasked."""
        with suppress(StateError):
            return State.open(self._state).training.plan()
        return None

    def _conclude(self, job: Job, before: Version, said: dict[str, Any], code: int) -> None:
        now = State.open(self._state).version
        # It may have ended after its commit: what the state says holds.
        learned = (not said or said.get("stopped")) and len(now.record["tasks"]) > len(before.record["tasks"])
        if said.get("event") == "done" or (learned and now.record.get("previous") == before.id):
            self._committed()
            self._end(job, "done", version=said.get("version", now.id))
            return
        plan = self._plan()
        self._left = None if plan == self._foreign else plan
        if said and not said.get("stopped"):
            helps, error = restart_helps(said["error"]), worded(said["error"], self._state)
        else:
            helps = False
            how = "was stopped" if said or self._closed else f"ended unexpectedly ({died(code)})"
            again = "goes on from its last checkpoint" if plan is not None else "begins anew"
            error = f"the learning process {how}; the state is as it was. Teaching the same again {again}"
        self._end(job, "failed", error=shown(error), restart_helps=helps)

    def _end(self, job: Job, status: str, **facts: Any) -> None:
        with self._changed:
            self._touch(job, status=status, ended=_now(), **facts)
        _log.info("job over", extra={"fields": {"job": job.id, "status": status, "version": job.version}})

    def _touch(self, job: Job, **facts: Any) -> None:
        for name, value in facts.items():
            setattr(job, name, value)
        job.revision += 1
        self._changed.notify_all()


def _tail(content: bytes) -> str:
    return content.decode("utf-8", "replace")[-2000:]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
