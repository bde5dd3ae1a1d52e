"""Work on one thing after the other in several threads, in order, a few ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from sapwood.errors import DataError

_AHEAD = 4  # things worked on ahead, per thread
_MOST_THREADS = 8

S = TypeVar("S")
T = TypeVar("T")


def each(read: Callable[[S], T], things: Sequence[S], workers: int, ahead: int = _AHEAD) -> Iterator[T | DataError]:
    """What ``read`` makes of each thing, in order, or the ``DataError`` that it raised.

    Only a few are ever read ahead, so that memory stays flat.

    Args:
        read: called in several threads at once.
        things: what to read.
        workers: threads; 0 takes one per processor, at most eight.
        ahead: how many are read ahead, per thread.
    """

    def one(thing: S) -> T | DataError:
        try:
            return read(thing)
        except DataError as error:
            return error

    workers = workers or usable_threads()
    if workers == 1:
        yield from map(one, things)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        waiting: deque[Future[T | DataError]] = deque()
        for thing in things:
            waiting.append(pool.submit(one, thing))
            if len(waiting) > ahead * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def usable_threads() -> int:
    """One per processor, at most eight."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MOST_THREADS, usable)
