"""Decoded pictures one behind the other, in memory up to a budget, in a temporary file beyond it, and no further."""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import shutil
import sys
import tempfile
import weakref
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sapwood.errors import SapwoodError

_FIRST = 2**20
_SHARE_OF_FREE = 0.5
_MOST = 64 * 2**30
_AXES = 3


class PixelBuffer:
    """Append what belongs to one picture after the other, ``close``, then read it by position.

    The temporary file is removed with the object. On Linux it has no name from the start, so that even a killed
    process leaves nothing behind.

    Args:
        budget: bytes kept in memory.
        limit: bytes kept in the temporary file, which takes everything once memory is too small; what is beyond both
            is not kept at all. None: half of what is free there now, at most 64 GiB.
    """

    def __init__(self, budget: int, limit: int | None = None) -> None:
        self.limit = _room() if limit is None else limit
        self._budget = budget
        self._each = 1
        self._starts: array[int] | np.ndarray = array("q")
        self._shapes: array[int] | np.ndarray = array("i")
        self._end = 0
        self._memory: np.ndarray = np.empty(min(_FIRST, max(budget, 1)), np.uint8)
        self._file: io.FileIO | None = None
        self._path: Path | None = None

    def append(self, *arrays: np.ndarray) -> None:
        """Add the arrays of uint8 of one picture, [H, W] or [H, W, C] each; of every picture equally many."""
        assert isinstance(self._starts, array)
        assert isinstance(self._shapes, array)
        self._each = len(arrays)
        for each in arrays:
            self._shapes.extend((*each.shape, 0)[:_AXES])
        end = self._end + sum(each.size for each in arrays)
        if end > max(self._budget, self.limit):
            self._starts.append(-1)
            return
        if self._file is None and end > self._budget:
            self._move_to_file()
        self._starts.append(self._end)
        for each in arrays:
            self._add(each)

    def close(self) -> None:
        """No more will be appended; from now on it can be read."""
        self._starts, self._shapes = self._numbers().values()
        if self._file is None:
            self._memory = self._memory[: self._end]
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

    def hand(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """What other processes of this machine ``take`` all by, JSON-ready; they must have done it before ``close``.

        Args:
            arrays: what they get besides; it travels in the file.
        """
        if self._file is None:
            self._move_to_file()
        assert self._file is not None
        # Without a name the file is reached through the process that holds it open.
        path = f"/proc/{os.getpid()}/fd/{self._file.fileno()}" if sys.platform == "linux" else str(self._path)
        where = {}
        for name, values in {**self._numbers(), **arrays}.items():
            where[name] = [self._end, values.dtype.str, list(values.shape)]
            self._add(values.reshape(-1).view(np.uint8))
        return {"path": path, "each": self._each, "limit": self.limit, "arrays": where}

    @classmethod
    def take(cls, told: Mapping[str, Any]) -> tuple[PixelBuffer, dict[str, np.ndarray]]:
        """The closed buffer, over the same file, of the process that ``hand`` was called in, and the arrays."""
        try:
            memory = np.memmap(told["path"], np.uint8, "r")
        except OSError as error:
            raise SapwoodError(
                f"what the first process of this machine has decoded cannot be opened ({error.strerror or error}); "
                "processes that learn together must run as one user and see each other"
            ) from error
        arrays = {}
        for name, (place, dtype, shape) in told["arrays"].items():
            kind = np.dtype(dtype)
            content = np.array(memory[place : place + kind.itemsize * math.prod(shape)])
            arrays[name] = content.view(kind).reshape(shape)
        made = cls(0, told["limit"])
        made._each, made._memory = told["each"], memory
        if sys.platform != "linux":
            made._path = Path(told["path"])
        made._starts, made._shapes = arrays.pop("starts"), arrays.pop("shapes")
        return made, arrays

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...] | None:
        """The arrays of one picture; None if they are not kept."""
        start, found = int(self._starts[index]), []
        if start < 0:
            return None
        for place in range(index * self._each, (index + 1) * self._each):
            shape = self._shape(place)
            end = start + math.prod(shape)
            found.append(self._memory[start:end].reshape(shape))
            start = end
        return tuple(found)

    @property
    def kept(self) -> np.ndarray:
        """bool [n], whether there was room for each picture."""
        return np.asarray(self._starts) >= 0

    def size(self, index: int) -> tuple[int, int]:
        """(H, W) of one picture's first array, kept or not."""
        height, width = self._shape(index * self._each)[:2]
        return height, width

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

    def _shape(self, place: int) -> tuple[int, ...]:
        shape = tuple(map(int, self._shapes[_AXES * place : _AXES * (place + 1)]))
        return shape if shape[-1] else shape[:-1]

    def _numbers(self) -> dict[str, np.ndarray]:
        return {"starts": np.array(self._starts, np.int64), "shapes": np.array(self._shapes, np.int32)}

    def _add(self, pixels: np.ndarray) -> None:
        begin, self._end = self._end, self._end + pixels.size
        if self._file is not None:
            self._write(pixels)
            return
        if self._end > len(self._memory):
            larger = np.empty(min(self._budget, max(self._end, 2 * len(self._memory))), np.uint8)
            larger[:begin] = self._memory[:begin]
            self._memory = larger
        self._memory[begin : self._end] = pixels.reshape(-1)

    def _move_to_file(self) -> None:
        handle, name = tempfile.mkstemp(prefix="sapwood-", suffix=".pixels")
        self._path = Path(name)
        weakref.finalize(self, _remove, self._path, os.getpid())
        if sys.platform == "linux":
            self._path.unlink(missing_ok=True)
        self._file = open(handle, "w+b", buffering=0)  # noqa: SIM115  # closed by close() and abandon()
        self._write(self._memory[: self._end])
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


def _room() -> int:
    return min(_MOST, int(_SHARE_OF_FREE * shutil.disk_usage(tempfile.gettempdir()).free))


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked worker must not remove what its parent reads
        with contextlib.suppress(OSError):
            path.unlink()
