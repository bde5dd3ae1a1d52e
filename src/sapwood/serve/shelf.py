"""Where uploads lie until they are answered or learned, and how what a killed server left behind goes away."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

_PREFIX = "sapwood-uploads-"
_LOCK = "lock"


class Shelf:
    """A temporary folder of this process; making it removes those whose owners have died."""

    def __init__(self) -> None:
        for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            _remove_if_left(left)
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = FileLock(self.folder / _LOCK, thread_local=False)
        self._lock.acquire()

    def make(self) -> Path:
        """A new folder on the shelf."""
        self.folder.mkdir(mode=0o700, exist_ok=True)  # systems clear their temporary folders now and then
        return Path(tempfile.mkdtemp(dir=self.folder))

    def close(self) -> None:
        """Delete everything."""
        self._lock.release()
        shutil.rmtree(self.folder, ignore_errors=True)


def _remove_if_left(folder: Path) -> None:
    """Its owner holds the lock while it lives; of other users' folders the lock cannot be had."""
    if folder.is_symlink() or not (folder / _LOCK).is_file():
        return
    with suppress(Timeout, OSError), FileLock(folder / _LOCK, timeout=0):
        shutil.rmtree(folder, ignore_errors=True)
