"""Which files in a folder are pictures, and where they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sapwood.data.names import natural_key, shown
from sapwood.errors import DataError

# fmt: off
PICTURE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif", ".heic", ".heif",
})
# fmt: on
_LEFT_BY_SYSTEMS = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}


def is_hidden(name: str) -> bool:
    """Whether a file or folder is the system's and not the user's: ``.DS_Store``, ``._a.jpg``, ``__MACOSX``."""
    return name.startswith(".") or name.casefold() in _LEFT_BY_SYSTEMS


def folders_in(folder: Path) -> list[Path]:
    """The sub-folders (links followed) that are not hidden, in natural order."""
    return [folder / entry.name for entry in _entries(folder) if _is_folder(entry)]


def pictures_in(folder: Path) -> Iterator[Path]:
    """Files with the suffix of a picture, in any letter case, at any depth; natural order, a folder's files first.

    Links are followed, except back into a folder on the way to them. A link to nowhere is listed, so that decoding
    can report it; sockets, pipes and the like are not.
    """
    yield from _walk(folder, frozenset())


def _walk(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    try:
        status = folder.stat()
    except OSError as error:
        raise DataError(f"{shown(folder)}: cannot be read ({error.strerror})") from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    deeper = []
    for entry in _entries(folder):
        if _is_folder(entry):
            deeper.append(folder / entry.name)
        elif Path(entry.name).suffix.lower() in PICTURE_SUFFIXES and (entry.is_file() or _is_broken_link(entry)):
            yield folder / entry.name
    for child in deeper:
        yield from _walk(child, above | {here})


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not is_hidden(entry.name)), key=lambda e: natural_key(e.name))
    except OSError as error:
        raise DataError(f"{shown(folder)}: cannot be read ({error.strerror})") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _is_broken_link(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)
