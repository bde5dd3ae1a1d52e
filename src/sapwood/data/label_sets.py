"""Which values each mask holds: thousands of files are read once and remembered."""

from __future__ import annotations

import contextlib
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from sapwood.cache import cache_dir
from sapwood.data.masks import MaskedPictures, read_mask
from sapwood.data.pictures import Picture


def label_sets(pictures: MaskedPictures) -> list[frozenset[int]]:
    """The values in each picture's whole mask, as its file holds them.

    Sets read from files are kept in the cache folder, under names, sizes and times of change of the files and the
    legend that they were read with.

    Raises:
        DataError: a mask is missing or unreadable, or holds a value that the legend lacks.
    """
    known = _known_file(pictures)
    present = _remembered(known, len(pictures))
    if present is None:
        present = _read(pictures)
        _remember(known, present)
    return [frozenset(np.flatnonzero(row).tolist()) for row in present]


def _read(pictures: MaskedPictures) -> np.ndarray:
    def one(picture: Picture) -> np.ndarray:
        return read_mask(picture, pictures.legend, size=None).counts > 0

    with ThreadPoolExecutor(thread_name_prefix="masks") as pool:
        return np.array(list(pool.map(one, pictures)), bool).reshape(len(pictures), 256)


def _known_file(pictures: MaskedPictures) -> Path | None:
    """Where the sets are remembered; None if a mask is not a file (or not there, which reading it will report)."""
    digest = hashlib.sha256(repr(pictures.legend).encode())
    try:
        for picture in pictures:
            if not isinstance(picture.mask, Path):
                return None
            status = picture.mask.stat()
            digest.update(f"{picture.mask.name}/{status.st_size}/{status.st_mtime_ns}\n".encode())
        return cache_dir() / "label-sets" / f"{digest.hexdigest()}.npy"
    except OSError:
        return None


def _remembered(file: Path | None, count: int) -> np.ndarray | None:
    if file is None or not file.is_file():
        return None
    try:
        packed = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # written halfway, or not by us
        return None
    if packed.shape != (count, 32) or packed.dtype != np.uint8:
        return None
    return np.unpackbits(packed, axis=1).astype(bool)


def _remember(file: Path | None, present: np.ndarray) -> None:
    if file is None:
        return
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not the result
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(f".{os.getpid()}.tmp")
        with open(aside, "wb") as stream:
            np.save(stream, np.packbits(present, axis=1))
        os.replace(aside, file)
