"""Pictures in files, a million of them in a few arrays: Python objects of each are made only when it is looked at."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

import numpy as np

from sapwood.data.pictures import Picture, Pictures

_ELSEWHERE = b"\0"  # before a name that does not begin like the others; no path holds it


class FilePictures(Pictures):
    """Labelled pictures in files, ``Pictures`` in all they do.

    Names lie one behind the other in one buffer, without the folder that they share, and classes as numbers. Subsets
    share the buffer. Forked processes share the memory with the one that reads, since looking at a picture writes
    nothing into it.
    """

    def __init__(self, files: Iterable[tuple[str, str]] = (), folder: str = "") -> None:
        """Take (path, label) of each; ``folder`` is what most paths begin with."""
        self._prefix = os.path.join(folder, "") if folder else ""
        start = len(self._prefix)
        text, ends, numbers = bytearray(), array("q", [0]), array("i")
        classes: dict[str, int] = {}
        for path, label in files:
            if path.startswith(self._prefix):
                text += path[start:].encode("utf-8", "surrogatepass")
            else:
                text += _ELSEWHERE + path.encode("utf-8", "surrogatepass")
            ends.append(len(text))
            numbers.append(classes.setdefault(label, len(classes)))
        self._text = np.frombuffer(bytes(text), np.uint8)
        self._ends = np.frombuffer(ends, np.int64)
        self._numbers = np.frombuffer(numbers, np.int32) if numbers else np.zeros(0, np.int32)
        self._names = tuple(classes)
        self._rows = np.arange(len(self._numbers), dtype=np.int32)

    @property
    def labels(self) -> tuple[str | None, ...]:
        """The label of each picture, in order."""
        names = self._names
        return tuple(names[number] for number in self._numbers[self._rows].tolist())

    @property
    def classes(self) -> tuple[str, ...]:
        """The distinct labels in the order in which they first appear."""
        numbers, first = np.unique(self._numbers[self._rows], return_index=True)
        return tuple(self._names[number] for number in numbers[np.argsort(first)].tolist())

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self._text.nbytes + self._ends.nbytes + self._numbers.nbytes + self._rows.nbytes

    def subset(self, indices: Iterable[int]) -> Self:
        """The pictures at ``indices``, in that order."""
        rows = np.fromiter(indices, np.int64) if not isinstance(indices, np.ndarray) else indices
        return self._over(self._rows[rows])

    def of(self, classes: Iterable[str]) -> Self:
        """The pictures whose label is one of ``classes``, in their present order."""
        wanted = set(classes)
        which = np.array([name in wanted for name in self._names], dtype=bool)
        return self._over(self._rows[which[self._numbers[self._rows]]])

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Picture]:
        return (self._picture(int(row)) for row in self._rows)

    def _at(self, index: int) -> Picture:
        return self._picture(int(self._rows[index]))

    def __add__(self, other: Pictures) -> Pictures:
        return Pictures((*self, *other))

    def _over(self, rows: np.ndarray) -> Self:
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__)
        part._rows = rows
        return part

    def _picture(self, row: int) -> Picture:
        content = self._text[self._ends[row] : self._ends[row + 1]].tobytes()
        if content.startswith(_ELSEWHERE):
            name = content[1:].decode("utf-8", "surrogatepass")
        else:
            name = self._prefix + content.decode("utf-8", "surrogatepass")
        return Picture(name, Path(name), self._names[self._numbers[row]])
