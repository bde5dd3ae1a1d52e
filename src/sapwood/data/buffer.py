"""Arrays of pixels one behind the other, in memory up to a budget and in a temporary file beyond it."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sapwood.errors import SapwoodError

_FIRST = 2**20


class PixelBuffer:
    """Append arrays of uint8, ``close``, then read them by position.

    The temporary file is removed with the object. On Linux it has no name from the start, so that even a killed
    process leaves nothing behind.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._shapes: list[tuple[int, ...]] = []
        self._offsets: list[int] = [0]
        self._memory: np.ndarray = np.empty(min(_FIRST, max(budget, 1)), np.uint8)
        self._file: io.FileIO | None = None
        self._path: Path | None = None

    def append(self, pixels: np.ndarray) -> None:
        """Add one array of any shape at the end."""
        begin, end = self._offsets[-1], self._offsets[-1] + pixels.size
        if self._file is None and end > self._budget:
            self._move_to_file(begin)
        if self._file is not None:
            self._write(pixels)
        else:
            if end > len(self._memory):
                larger = np.empty(min(self._budget, max(end, 2 * len(self._memory))), np.uint8)
                larger[:begin] = self._memory[:begin]
                self._memory = larger
            self._memory[begin:end] = pixels.reshape(-1)
        self._shapes.append(pixels.shape)
        self._offsets.append(end)

    def close(self) -> None:
        """No more will be appended; from now on it can be read."""
        if self._file is None:
            self._memory = self._memory[: self._offsets[-1]]
            self._memory.flags.writeable = False
            return
        assert self._path is not None
        with self._file, space(self._path.parent, "decoded pictures"):
            self._memory = np.memmap(self._file, np.uint8, "r")
        self._file = None

    def abandon(self) -> None:
        """Nothing will be read: close the file; it is removed with the object."""
        if self._file is not None:
            self._file.close()

    def __getitem__(self, index: int) -> np.ndarray:
        return self._memory[self._offsets[index] : self._offsets[index + 1]].reshape(self._shapes[index])

    def __getstate__(self) -> dict[str, object]:
        """For a worker process that was not forked: a named file is opened again, anything else travels."""
        state = dict(self.__dict__)
        if self._path is not None and self._path.exists():
            state["_memory"] = None
        else:
            state["_memory"], state["_path"] = np.array(self._memory), None
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        if self._memory is None and self._path is not None:
            self._memory = np.memmap(self._path, np.uint8, "r")

    def _move_to_file(self, used: int) -> None:
        handle, name = tempfile.mkstemp(prefix="sapwood-", suffix=".pixels")
        self._path = Path(name)
        weakref.finalize(self, _remove, self._path, os.getpid())
        if sys.platform == "linux":
            self._path.unlink(missing_ok=True)
        self._file = open(handle, "w+b", buffering=0)  # noqa: SIM115  # closed by close() and abandon()
        self._write(self._memory[:used])
        self._memory = np.empty(0, np.uint8)

    def _write(self, pixels: np.ndarray) -> None:
        assert self._file is not None
        assert self._path is not None
        rest = np.ascontiguousarray(pixels).reshape(-1).data
        with space(self._path.parent, "decoded pictures"):
            while len(rest):
                rest = rest[self._file.write(rest) :]


@contextlib.contextmanager
def space(folder: Path, what: str) -> Iterator[None]:
    """A full disk inside gives one line that names the folder."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
            raise
        raise SapwoodError(
            f"no space left on {folder} for {what}; free some, or set TMPDIR to a larger disk"
        ) from error


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked worker must not remove what its parent reads
        with contextlib.suppress(OSError):
            path.unlink()
