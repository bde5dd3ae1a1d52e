"""What stores of decoded pictures have in common: one look at every file, and what is kept of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, NamedTuple, Self, TypeVar

import numpy as np

from sapwood.data.buffer import PixelBuffer
from sapwood.data.names import shown
from sapwood.data.pictures import Picture, Pictures
from sapwood.data.reading import each
from sapwood.errors import DataError

P = TypeVar("P", bound=Pictures)

Share = Callable[[Callable[[], Any]], Any]
"""Runs a function in the first process of each machine; all others there get what it gave (JSON), or raise what it
raised. All processes must call it alike."""

SHA256_BYTES = 32


class Look(NamedTuple):
    """What one look at a picture gives.

    Attributes:
        arrays: uint8, [H, W] or [H, W, C] each; of every picture equally many.
        facts: first the sha256 of all bytes that were read, then whatever else; of every picture equally long.
    """

    arrays: tuple[np.ndarray, ...]
    facts: bytes


class _Last(threading.local):
    """What was decoded last in this thread: (which, arrays)."""

    which: int = -1
    arrays: tuple[np.ndarray, ...] = ()

    def __reduce__(self) -> tuple[type[_Last], tuple[()]]:
        return _Last, ()


class KeptPictures(Generic[P]):
    """Pictures that were all looked at once, and are decoded anew where there was no room to keep them.

    Args:
        pictures: to look at.
        look: called in several threads at once, and by every process that makes views.
        names: of a picture, what a message may be about: its own first, its mask's.
        workers, progress: as of the stores.
        budget, limit: as of ``PixelBuffer``.
        share: where processes share what the first one decodes.

    Attributes:
        pictures: those that ``look`` gave something of.
        bad: (name, reason) of the others.
        sha256: of all bytes that were read for each picture, as 64 hexadecimal digits.
    """

    def __init__(
        self,
        pictures: P,
        look: Callable[[Picture], Look],
        *,
        names: Callable[[Picture], Sequence[str]],
        workers: int,
        progress: Callable[[int, int], None] | None,
        budget: int,
        limit: int | None,
        share: Share | None,
    ) -> None:
        def looked() -> tuple[PixelBuffer, dict[str, np.ndarray]]:
            # What is shared lies in the file alone.
            buffer = PixelBuffer(0 if share else budget, limit)
            try:
                return buffer, _look_at_all(buffer, pictures, look, names, workers, progress)
            except BaseException:
                buffer.abandon()
                raise

        if share is None:
            buffer, found = looked()
            buffer.close()
        else:
            buffer, found = _shared(looked, share, len(pictures))
        good = found["good"].tolist()
        self.pictures = pictures.subset(good)
        self.bad: tuple[tuple[str, str], ...] = tuple((name, why) for name, why in json.loads(found["bad"].tobytes()))
        self.sha256 = tuple(row.tobytes().hex() for row in found["facts"][:, :SHA256_BYTES])
        self._facts = found["facts"][:, SHA256_BYTES:]
        self._buffer, self._look = buffer, look
        self._rows = np.arange(len(good))
        self._last = _Last()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def anew(self) -> int:
        """How many of the pictures are not kept, but decoded at every look."""
        return int(np.count_nonzero(~self._buffer.kept[self._rows]))

    @property
    def limit(self) -> int:
        """Bytes beyond which no pixels are kept on disk."""
        return self._buffer.limit

    def size(self, index: int) -> tuple[int, int]:
        """(H, W) of one picture here; nothing is decoded for it."""
        return self._buffer.size(int(self._rows[index]))

    def subset(self, indices: Iterable[int]) -> Self:
        """A store of the pictures at ``indices``, in that order, over the same memory."""
        chosen = [range(len(self))[int(index)] for index in indices]
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__)
        part.pictures = self.pictures.subset(chosen)
        part.bad = ()
        part.sha256 = tuple(self.sha256[index] for index in chosen)
        part._facts = self._facts[chosen]
        part._rows = self._rows[chosen]
        return part

    def _arrays(self, index: int) -> tuple[np.ndarray, ...]:
        """What is kept of a picture, or what another look gives."""
        row = int(self._rows[index])
        if (kept := self._buffer[row]) is not None:
            return kept
        if self._last.which != row:
            picture = self.pictures[index]
            found = self._look(picture)
            if found.facts[:SHA256_BYTES].hex() != self.sha256[index]:
                raise DataError(
                    f"{shown(picture.name)}: has changed since this command first read it; leave the files alone "
                    "until it has ended, and start it again"
                )
            self._last.which, self._last.arrays = row, tuple(map(_read_only, found.arrays))
        return self._last.arrays


def _read_only(values: np.ndarray) -> np.ndarray:
    found = values.view()  # the array itself may be the caller's own
    found.flags.writeable = False
    return found


def _look_at_all(
    buffer: PixelBuffer,
    pictures: Pictures,
    look: Callable[[Picture], Look],
    names: Callable[[Picture], Sequence[str]],
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> dict[str, np.ndarray]:
    """Fill the buffer: indices of the good pictures, (name, reason) of the bad ones as JSON, facts [n, F]."""
    good: list[int] = []
    bad: list[tuple[str, str]] = []
    facts, length = bytearray(), SHA256_BYTES
    for index, found in enumerate(each(look, pictures, workers)):
        if isinstance(found, DataError):
            bad.append(name_and_reason(found, *names(pictures[index])))
        else:
            buffer.append(*found.arrays)
            facts += found.facts
            length = len(found.facts)
            good.append(index)
        if progress is not None:
            progress(index + 1, len(pictures))
    return {
        "good": np.array(good, np.int64),
        "bad": np.frombuffer(json.dumps(bad).encode(), np.uint8),
        "facts": np.frombuffer(bytes(facts), np.uint8).reshape(-1, length),
    }


def _shared(
    looked: Callable[[], tuple[PixelBuffer, dict[str, np.ndarray]]], share: Share, count: int
) -> tuple[PixelBuffer, dict[str, np.ndarray]]:
    """What ``looked`` gives in the first process of this machine, where alone it runs."""
    mine: list[tuple[PixelBuffer, dict[str, np.ndarray]]] = []

    def handed() -> dict[str, Any]:
        mine.append(looked())
        buffer, found = mine[0]
        try:
            return {"count": count, **buffer.hand(found)}
        except BaseException:
            buffer.abandon()
            raise

    told = share(handed)
    if told["count"] != count:
        raise DataError(
            f"this process was given {count} pictures, the first of its machine {told['count']}; "
            "give all the same, and leave the files alone until the command has ended"
        )
    buffer, found = mine[0] if mine else PixelBuffer.take(told)
    share(lambda: None)  # now all have opened the file, whose name or first owner may go
    if mine:
        buffer.close()
    return buffer, found


def name_and_reason(error: DataError, *names: str) -> tuple[str, str]:
    """The first of ``names`` that an error is about (else the first of all), and the rest of its message."""
    text = str(error)
    name = next((name for name in names if text.startswith(f"{shown(name)}: ")), names[0])
    return name, text.removeprefix(f"{shown(name)}: ")


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
