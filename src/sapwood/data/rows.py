"""Rows of numbers, such as features of pictures: in memory up to a budget, in a temporary file beyond it."""

from __future__ import annotations

import io
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, overload

import numpy as np
import torch
from torch import Tensor

from sapwood.data.buffer import space
from sapwood.functional.statistics import BLOCK


class Rows(Protocol):
    """What is read like a tensor [n, ...] of float32 on the CPU; a tensor is one."""

    @property
    def shape(self) -> torch.Size:
        """(n, ...)."""

    @property
    def device(self) -> torch.device:
        """Where what is read lies."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: slice | Tensor, /) -> Tensor: ...


class FileRows:
    """Rows float32 in a file, read as they are asked for: by a slice of step 1 or a tensor of indices."""

    device = torch.device("cpu")

    def __init__(self, file: io.FileIO, shape: torch.Size) -> None:
        self.shape = shape
        self._file = file
        self._bytes = 4 * math.prod(shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise ValueError("rows in a file are read one behind the other")
            return self._read(start, max(start, stop))
        found = torch.empty(len(index), *self.shape[1:])
        for place, start, count in _runs(index):
            found[place : place + count] = self._read(start, start + count)
        return found

    def _read(self, start: int, stop: int) -> Tensor:
        found = np.empty((stop - start, *self.shape[1:]), np.float32)
        rest = found.reshape(-1).view(np.uint8).data
        self._file.seek(start * self._bytes)
        while len(rest):
            done = self._file.readinto(rest)
            if not done:
                raise OSError("a temporary file of features is shorter than it was")
            rest = rest[done:]
        return torch.from_numpy(found)


class JoinedRows:
    """Rows one behind the other, read as if they were one tensor."""

    def __init__(self, first: Rows, second: Rows) -> None:
        if first.shape[1:] != second.shape[1:]:
            raise ValueError(f"rows {tuple(first.shape)} and {tuple(second.shape)} are not alike")
        self.shape = torch.Size([len(first) + len(second), *first.shape[1:]])
        self.device = first.device
        self._first, self._second = first, second

    def __len__(self) -> int:
        return self.shape[0]

    @overload
    def __getitem__(self, index: slice) -> Tensor: ...
    @overload
    def __getitem__(self, index: Tensor) -> Tensor: ...
    def __getitem__(self, index: slice | Tensor) -> Tensor:
        border = len(self._first)
        if isinstance(index, slice):
            start, stop, _ = index.indices(len(self))
            early = self._first[min(start, border) : min(stop, border)]
            late = self._second[max(start - border, 0) : max(stop - border, 0)]
            return late if not len(early) else early if not len(late) else torch.cat([early, late])
        inside = index < border
        early = self._first[index[inside]]
        found = early.new_empty(len(index), *self.shape[1:])
        found[inside], found[~inside] = early, self._second[index[~inside] - border]
        return found


class RowBuffer:
    """Append rows [k, ...] of float32 on the CPU, then ``close``: a tensor, or ``FileRows`` beyond the budget.

    The file has no name: it is gone with the object, also when the process is killed.

    Args:
        budget: bytes kept in memory; None keeps all.
    """

    def __init__(self, budget: int | None) -> None:
        self._budget = budget
        self._parts: list[Tensor] = []
        self._count = self._bytes = 0
        self._file: io.FileIO | None = None

    def __len__(self) -> int:
        return self._count

    def append(self, rows: Tensor) -> None:
        """Add rows behind the others."""
        self._parts.append(rows)
        self._count += len(rows)
        self._bytes += rows.numel() * rows.element_size()
        if self._budget is not None and self._bytes > self._budget:
            self._write()

    def close(self) -> Tensor | FileRows:
        """All rows; no more will be appended."""
        if self._file is None:
            return torch.cat(self._parts)
        shape, file = self._shape, self._file
        self._file = None
        return FileRows(file, shape)

    @property
    def _shape(self) -> torch.Size:
        return torch.Size([self._count, *self._kind])

    def _write(self) -> None:
        with space(Path(tempfile.gettempdir()), "features"):
            if self._file is None:
                # Without a buffer of Python's own; the object closes it when it goes.
                self._file = tempfile.TemporaryFile("w+b", buffering=0, prefix="sapwood-")  # noqa: SIM115
                self._kind = self._parts[0].shape[1:]
            for rows in self._parts:
                rest = rows.contiguous().numpy().reshape(-1).view(np.uint8).data
                while len(rest):
                    rest = rest[self._file.write(rest) :]
        self._parts = []


def joined(first: Rows, second: Rows) -> Rows:
    """Both one behind the other: copied where they are few, else as a view of both."""
    if isinstance(first, Tensor) and isinstance(second, Tensor) and len(first) + len(second) <= BLOCK:
        return torch.cat([first, second])
    return JoinedRows(first, second)


def blocks(rows: Rows) -> Iterator[Tensor]:
    """The rows in order, ``BLOCK`` at a time; of none a single empty block."""
    for start in range(0, max(len(rows), 1), BLOCK):
        yield rows[start : start + BLOCK]


def evenly(count: int, most: int) -> Tensor:
    """At most ``most`` of ``count`` indices, evenly from first to last.

    >>> evenly(10, 4).tolist(), evenly(3, 4).tolist()
    ([0, 2, 5, 7], [0, 1, 2])
    """
    number = min(count, most)
    return torch.arange(number) * count // max(number, 1)


def _runs(index: Tensor) -> Iterator[tuple[int, int, int]]:
    """Place in the index, first row and number of every stretch of rows that follow each other."""
    if len(index):
        breaks = (torch.diff(index) != 1).nonzero().flatten() + 1
        begins = [0, *breaks.tolist()]
        for place, end in zip(begins, [*begins[1:], len(index)], strict=True):
            yield place, int(index[place]), end - place
