"""Decoded pictures at working size: each file is read and decoded once."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np

from sapwood.data.buffer import PixelBuffer
from sapwood.data.decode import DEFAULT_PIXEL_LIMIT, decode_with_sha256
from sapwood.data.names import shown
from sapwood.data.pictures import Picture, Pictures
from sapwood.errors import DataError

_AHEAD = 4  # pictures decoded ahead, per worker
_MOST_THREADS = 8

BUDGET = 512 * 2**20
"""Bytes of decoded pixels kept in memory."""

T = TypeVar("T")


class PictureStore:
    """Decoded pictures, uint8 [H, W, 3] each, in memory up to a budget and on disk beyond it.

    Args:
        pictures: what to decode.
        shorter: shorter side in pixels to which larger pictures are reduced.
        skip_bad: leave out pictures that cannot be read (they are listed in ``bad``) instead of raising.
        pixel_limit: see ``decode``.
        workers: decoding threads; 0 takes one per processor, at most eight.
        progress: called with (done, total) after each picture, from the calling thread.
        budget: bytes kept in memory; what is beyond goes to a temporary file.

    Attributes:
        pictures: the readable ones.
        bad: (name, reason) of the others.
        sha256: of each readable picture's bytes.

    Raises:
        DataError: pictures cannot be read and ``skip_bad`` is off, or a class has no readable picture.
    """

    def __init__(
        self,
        pictures: Pictures,
        shorter: int,
        *,
        skip_bad: bool = False,
        pixel_limit: int = DEFAULT_PIXEL_LIMIT,
        workers: int = 0,
        progress: Callable[[int, int], None] | None = None,
        budget: int = BUDGET,
    ) -> None:
        digests: list[str] = []
        buffer = PixelBuffer(budget)
        good: list[int] = []
        bad: list[tuple[str, str]] = []
        try:
            decoding = partial(decode_with_sha256, shorter=shorter, pixel_limit=pixel_limit)
            for index, outcome in enumerate(each(decoding, pictures, workers)):
                if isinstance(outcome, DataError):
                    bad.append(name_and_reason(outcome, pictures[index].name))
                else:
                    buffer.append(outcome.pixels)
                    digests.append(outcome.sha256)
                    good.append(index)
                if progress is not None:
                    progress(index + 1, len(pictures))
        except BaseException:
            buffer.abandon()
            raise
        buffer.close()
        self.pictures = pictures.subset(good)
        self.bad = tuple(bad)
        self.sha256 = tuple(digests)
        self._buffer = buffer
        self._rows: list[int] = list(range(len(good)))
        refuse_bad(pictures, self.pictures, self.bad, skip_bad)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._buffer[self._rows[index]]

    def subset(self, indices: Iterable[int]) -> PictureStore:
        """A store of the pictures at ``indices``, in that order, over the same memory."""
        chosen = [range(len(self))[int(index)] for index in indices]
        part = object.__new__(PictureStore)
        part.pictures = self.pictures.subset(chosen)
        part.bad = ()
        part.sha256 = tuple(self.sha256[index] for index in chosen)
        part._buffer = self._buffer
        part._rows = [self._rows[index] for index in chosen]
        return part


def each(read: Callable[[Picture], T], pictures: Pictures, workers: int) -> Iterator[T | DataError]:
    """What ``read`` makes of each picture, in order, or the ``DataError`` that it raised.

    Only a few pictures are ever read ahead, so that memory stays flat.

    Args:
        read: called in several threads at once.
        pictures: what to read.
        workers: threads; 0 takes one per processor, at most eight.
    """

    def one(picture: Picture) -> T | DataError:
        try:
            return read(picture)
        except DataError as error:
            return error

    workers = workers or _threads()
    if workers == 1:
        yield from map(one, pictures)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        waiting: deque[Future[T | DataError]] = deque()
        for picture in pictures:
            waiting.append(pool.submit(one, picture))
            if len(waiting) > _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def refuse_bad(
    asked: Pictures,
    kept: Pictures,
    bad: Sequence[tuple[str, str]],
    skip_bad: bool,
    what: str = "pictures cannot be read",
) -> None:
    """Raise if something is bad and ``skip_bad`` is off, or if without the bad ones a class has no picture left."""
    if not bad:
        return
    count = f"{len(bad)} of {len(asked)} {what}"
    first = "; ".join(f"{shown(name)} ({reason})" for name, reason in bad[:5])
    more = f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
    if not skip_bad:
        raise DataError(f"{count}: {first}{more}. Mend or remove them, or leave them out with --skip-bad")
    left = frozenset(kept.classes)
    lost = [name for name in asked.classes if name not in left]
    if lost or not kept:
        what = f"no readable picture is left of class {', '.join(map(repr, lost))}" if lost else "none is left"
        raise DataError(f"{count}, {what}: {first}{more}")


def name_and_reason(error: DataError, *names: str) -> tuple[str, str]:
    """The first of ``names`` that an error is about (else the first of all), and the rest of its message."""
    text = str(error)
    name = next((name for name in names if text.startswith(f"{shown(name)}: ")), names[0])
    return name, text.removeprefix(f"{shown(name)}: ")


def _threads() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MOST_THREADS, usable)
