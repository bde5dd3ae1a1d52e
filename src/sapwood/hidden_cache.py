"""Hidden states of pictures on disk: computed once, found again by all that they depend on, never served stale."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
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


class HiddenCache:
    """A file for each view of a picture. Any number of processes may read and write at once.

    A file holds a digest of its name, of ``what`` and of its numbers: what is cut short, damaged or another's is not
    there, and is computed anew. It is written under another name and then renamed, so that nobody sees half of it.

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

    def room_for(self, views: int) -> bool:
        """Whether so many would take less than half of what is free where they lie."""
        return views * self.bytes_each < _SHARE_OF_FREE * shutil.disk_usage(cache_dir()).free

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

    def _path(self, name: str) -> Path:
        key = hashlib.sha256(name.encode()).hexdigest()
        return self.folder / key[:2] / key[2:34]

    def _digest(self, name: str, numbers: bytes | bytearray) -> bytes:
        found = hashlib.blake2b(f"{self.what} {name} ".encode(), digest_size=_DIGEST)
        found.update(numbers)
        return found.digest()


def why(error: OSError) -> str:
    """In a few words.

    >>> why(OSError(28, "No space left on device"))
    'no space left'
    """
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        return "no space left"
    return error.strerror or type(error).__name__
