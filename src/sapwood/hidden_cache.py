"""Hidden states of pictures on disk: computed once, found again by all that they depend on, never served stale."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sapwood.cache import cache_dir

FOLDER = "hidden"
"""Below the user's cache folder; it may be removed at any time."""

_DIGEST = 16  # bytes before the numbers
_SHARE_OF_FREE = 0.5
_UNUSED = 24 * 60 * 60.0
"""Seconds after which nobody is taken to read a folder any more."""


class HiddenCache:
    """A file for each view of a picture. Any number of processes may read and write at once.

    A file holds a digest of its name, of ``what`` and of its numbers: what is cut short, damaged or another's is not
    there, and is computed anew. It is written under another name and then renamed, so that nobody sees half of it.
    The files of one ``what`` have a folder, whose own time of change is that of the last ``use``.

    Args:
        what: all that the numbers depend on besides the view, JSON-ready.
        shape: of one view's hidden states.
        dtype: of them, and on disk: what is read is bit for bit what was computed.
    """

    def __init__(self, what: Mapping[str, Any], shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.shape, self.dtype = shape, dtype
        text = json.dumps({**what, "shape": list(shape), "dtype": str(dtype)}, sort_keys=True)
        self.what = hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def folder(self) -> Path:
        """Where the files lie; OSError where the user's cache folder cannot be made."""
        return cache_dir() / FOLDER / self.what[:32]

    @property
    def bytes_each(self) -> int:
        """Bytes on disk of one view."""
        return _DIGEST + torch.Size(self.shape).numel() * self.dtype.itemsize

    def use(self) -> None:
        """Note that this is in use: for a day nobody removes it to make room."""
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            os.utime(self.folder)

    def room_for(self, views: int) -> bool:
        """Whether so many would take less than half of what is free where they lie."""
        return not views or self._fits(views)

    def make_room(self, views: int) -> int:
        """Remove what other settings have left, the longest unused first, until there is room for so many views.

        Nothing that was used within the last day, which another process may be reading, and nothing at all where that
        would not be enough.

        Returns:
            Bytes that were freed.
        """
        if self.room_for(views):
            return 0
        unused = [(folder, _bytes_in(folder)) for folder in self._unused()]
        if not self._fits(views, sum(size for _, size in unused)):
            return 0
        freed = 0
        for folder, size in unused:
            aside = folder.with_name(f".{folder.name.lstrip('.')}")
            with suppress(OSError):  # another process was faster
                os.rename(folder, aside)  # what a kill leaves here has a name by which nobody reads
                shutil.rmtree(aside, ignore_errors=True)
                freed += size
            if self.room_for(views):
                break
        return freed

    def __contains__(self, name: str) -> bool:
        """Whether there is a file of the right size; ``get`` looks at what is in it."""
        try:
            return self._path(name).stat().st_size == self.bytes_each
        except OSError:
            return False

    def get(self, name: str) -> Tensor | None:
        """What was computed for the view of that name; None if it is not there."""
        try:
            content = bytearray(self._path(name).read_bytes())
        except OSError:
            return None
        numbers = content[_DIGEST:]
        if len(content) != self.bytes_each or content[:_DIGEST] != self._digest(name, numbers):
            return None
        return torch.frombuffer(numbers, dtype=self.dtype).reshape(self.shape)

    def put(self, name: str, hidden: Tensor) -> None:
        """Keep what was computed for the view of that name.

        Raises:
            OSError: it cannot be written; what is there stays whole.
        """
        numbers = hidden.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=".")
        try:
            with open(handle, "wb") as stream:
                stream.write(self._digest(name, numbers) + numbers)
            os.replace(aside, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(aside)
            raise

    def remove(self, name: str) -> None:
        """Make room again."""
        with suppress(OSError):
            self._path(name).unlink()

    def _fits(self, views: int, more: int = 0) -> bool:
        return views * self.bytes_each < _SHARE_OF_FREE * (shutil.disk_usage(cache_dir()).free + more)

    def _unused(self) -> list[Path]:
        """Folders of other settings, half-removed ones first, then the longest unused."""
        ages, now = dict[Path, float](), time.time()
        for folder in self.folder.parent.glob("*"):
            if folder.is_dir() and folder != self.folder:
                with suppress(OSError):  # another process removes it
                    ages[folder] = float("inf") if folder.name.startswith(".") else now - folder.stat().st_mtime
        return sorted((folder for folder, age in ages.items() if age > _UNUSED), key=lambda folder: -ages[folder])

    def _path(self, name: str) -> Path:
        key = hashlib.sha256(name.encode()).hexdigest()
        return self.folder / key[:2] / key[2:34]

    def _digest(self, name: str, numbers: bytes | bytearray) -> bytes:
        found = hashlib.blake2b(f"{self.what} {name} ".encode(), digest_size=_DIGEST)
        found.update(numbers)
        return found.digest()


def _bytes_in(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            size += path.stat().st_size if path.is_file() else 0
    return size


def why(error: OSError) -> str:
    """In a few words.

    >>> why(OSError(28, "No space left on device"))
    'no space left'
    """
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        return "no space left"
    return error.strerror or type(error).__name__
