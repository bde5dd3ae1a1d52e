"""One writer at a time: a lock the operating system drops when its owner dies, and a note that says who owns it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from sapwood.errors import StateBusy
from sapwood.state.files import ASIDE, discard, writing

LOCK = "lock"
OWNER = "lock-owner.json"

_GRACE = 1.0
"""Seconds to wait for the lock: a writer just killed, or its forked workers, may take a moment to vanish."""


class WriterLock:
    """The lock of one state folder; may be held again by the object that holds it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._depth = 0

    @contextmanager
    def hold(self) -> Iterator[bool]:
        """Hold the lock; yields whether this is the outermost block.

        Raises:
            StateBusy: another writer has it; the line names its process, host and since when.
            SapwoodError: the folder cannot be written.
        """
        if self._depth:
            self._depth += 1
            try:
                yield False
            finally:
                self._depth -= 1
            return
        from filelock import FileLock, Timeout

        lock = FileLock(self.root / LOCK, timeout=_GRACE, thread_local=False)
        with writing(self.root):
            try:
                lock.acquire()
            # Timeout is an OSError too: it must not be told as a folder that cannot be written.
            except Timeout as error:
                raise StateBusy(self._busy()) from error
        self._depth = 1
        try:
            self._sign()
            yield True
        finally:
            self._depth = 0
            discard(self.root / OWNER)
            lock.release()

    def _sign(self) -> None:
        """Say who writes. Only for the message: on a full disk the lock works without."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        temporary = self.root / f"{ASIDE}{os.getpid()}-owner"
        with suppress(OSError):
            temporary.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now}))
            os.replace(temporary, self.root / OWNER)

    def _busy(self) -> str:
        try:
            owner = json.loads((self.root / OWNER).read_bytes())
            who = f"process {owner['pid']} on {owner['host']} since {owner['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            who = "another process"
        return f"{self.root} is being written by {who}; wait until it ends or stop it, then run the command again"
