"""Unpacking a zip that a stranger may have made: nothing leaves its folder, and nothing is larger than it may be."""

from __future__ import annotations

import os
import stat
import unicodedata
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sapwood.data.files import PICTURE_SUFFIXES, is_hidden
from sapwood.data.names import class_name, same_name_key, shown
from sapwood.errors import DataError

_ENTRY = b"PK\x01\x02"  # begins each entry of a zip's directory
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1
_UTF8 = 0x800
_BLOCK = 1 << 16
_NAME_BYTES = 200  # of one part of a path: file systems hold 255
_LEGENDS = frozenset({"classes.json", "classes.txt"})
_MASK_FOLDERS = frozenset({"images", "masks", "labels", "saliency"})


@dataclass(frozen=True)
class ArchiveLimits:
    """How large an archive may be.

    Attributes:
        entries: files and folders in it.
        total_bytes: of all files, unpacked.
        file_bytes: of one file, unpacked.
        ratio: unpacked to packed bytes of a file above ``ratio_from`` bytes; pictures hardly shrink.
        ratio_from: bytes below which any ratio is fine.
        depth: folders above a file.
    """

    entries: int = 20_000
    total_bytes: int = 4 << 30
    file_bytes: int = 64 << 20
    ratio: float = 100.0
    ratio_from: int = 1 << 20
    depth: int = 8


@dataclass(frozen=True)
class Unpacked:
    """What came out.

    Attributes:
        folder: class folders, or pictures and masks, lie directly in it.
        files: how many were written.
        skipped: how many were passed over, being neither pictures nor a list of classes.
    """

    folder: Path
    files: int
    skipped: int


def unpack(archive: Path, folder: Path, limits: ArchiveLimits | None = None) -> Unpacked:
    """Unpack the pictures of a zip of class folders, or of ``images/``, ``masks/`` and ``classes.json``.

    All names and declared sizes are looked at before anything is written; bytes are counted as they are written, so
    that a lie about sizes does not help. Files without the suffix of a picture, and what systems leave behind, are
    passed over. A folder that holds everything else is left out of the paths.

    Args:
        archive: the zip.
        folder: an empty folder to write into; what is written there is the caller's to delete, also after an error.
        limits: by default those of ``ArchiveLimits``.

    Raises:
        DataError: no zip, encrypted, damaged, too large, a link, a path that leads out of the archive, a name that
            no class may have, two files that bear one name.
    """
    limits = limits or ArchiveLimits()
    _check_directory(archive, limits)
    try:
        with zipfile.ZipFile(archive) as opened:
            chosen, skipped = _chosen(opened.infolist(), limits)
            _write(opened, chosen, folder, limits)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeDecodeError) as error:
        raise DataError(f"the archive is damaged ({shown(error) or type(error).__name__}); pack it again") from error
    if not chosen:
        raise DataError("the archive holds no pictures; expected CLASS/*.jpg, or images/, masks/ and classes.json")
    return Unpacked(folder, len(chosen), skipped)


def _check_directory(archive: Path, limits: ArchiveLimits) -> None:
    """Count the entries before Python makes objects of them: millions fit into a small file."""
    count, tail = 0, b""
    with archive.open("rb") as file:
        start = file.read(4)
        if start not in (b"PK\x03\x04", b"PK\x05\x06"):
            raise DataError("the archive is not a zip; pack the class folders as .zip")
        while block := file.read(1 << 20):
            block = tail + block
            count += block.count(_ENTRY)
            if count > limits.entries:
                raise DataError(f"the archive holds more than {limits.entries:,} files; send it in parts")
            tail = block[1 - len(_ENTRY) :]


def _chosen(
    entries: list[zipfile.ZipInfo], limits: ArchiveLimits
) -> tuple[list[tuple[zipfile.ZipInfo, PurePosixPath]], int]:
    """Entries to write and where, and how many files are passed over."""
    chosen: list[tuple[zipfile.ZipInfo, PurePosixPath]] = []
    total = skipped = 0
    for entry in entries:
        path = _path(entry, limits)
        if entry.is_dir():
            continue
        total += entry.file_size
        if entry.file_size > limits.file_bytes:
            raise DataError(f"{shown(path)}: unpacks to more than {_megabytes(limits.file_bytes)}; make it smaller")
        if total > limits.total_bytes:
            raise DataError(f"the archive unpacks to more than {_megabytes(limits.total_bytes)}; send it in parts")
        if entry.file_size > limits.ratio_from and entry.file_size > limits.ratio * max(1, entry.compress_size):
            raise DataError(f"{shown(path)}: shrinks more than {limits.ratio:g} times, as no picture does")
        if any(is_hidden(part) for part in path.parts):
            skipped += 1
        elif path.suffix.lower() in PICTURE_SUFFIXES or path.name.casefold() in _LEGENDS:
            chosen.append((entry, path))
        else:
            skipped += 1
    chosen = _without_wrapper(chosen)
    _check_names([path for _, path in chosen])
    return chosen, skipped


def _stored_name(entry: zipfile.ZipInfo) -> str:
    """The name as it was meant: many programs write UTF-8 and do not say so."""
    if not entry.flag_bits & _UTF8:
        with suppress(UnicodeError):
            return entry.orig_filename.encode("cp437").decode("utf-8")
    return entry.orig_filename


def _path(entry: zipfile.ZipInfo, limits: ArchiveLimits) -> PurePosixPath:
    """The entry's path, if it is one that stays where it belongs and that a file may have."""
    name = unicodedata.normalize("NFC", _stored_name(entry))
    told = f"the archive's entry '{shown(name[:_NAME_BYTES])}'"
    parts = name.removesuffix("/").split("/")
    fault = None
    if entry.flag_bits & _ENCRYPTED:
        fault = "is encrypted; pack it without a password"
    elif stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        fault = "is a link or a device, not a file; pack the files themselves"
    elif entry.compress_type not in _METHODS and not entry.is_dir():
        fault = "is packed in an unusual way; pack it as an ordinary zip (deflate)"
    elif "\\" in name or "\0" in name or ":" in parts[0]:
        fault = "has a name that is no path inside an archive"
    elif any(part in ("", ".", "..") for part in parts):
        fault = "leads out of the archive"
    elif len(parts) > limits.depth + 1:
        fault = f"lies more than {limits.depth} folders deep"
    elif any(len(part.encode("utf-8", "surrogatepass")) > _NAME_BYTES for part in parts):
        fault = f"has a name of more than {_NAME_BYTES} bytes; shorten it"
    if fault:
        raise DataError(f"{told} {fault}")
    for part in parts:
        class_name(part, "the archive", "file or folder")
    return PurePosixPath(*parts)


def _without_wrapper(
    chosen: list[tuple[zipfile.ZipInfo, PurePosixPath]],
) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """Paths without the one folder that people pack around their class folders."""
    tops = {path.parts[0] for _, path in chosen}
    if len(tops) != 1:
        return chosen
    deep = all(len(path.parts) > 2 for _, path in chosen)
    inside = {path.parts[1].casefold() for _, path in chosen if len(path.parts) > 1}
    if not deep and not (inside >= {"images"} and inside <= _MASK_FOLDERS | _LEGENDS):
        return chosen
    return [(entry, PurePosixPath(*path.parts[1:])) for entry, path in chosen]


def _check_names(paths: list[PurePosixPath]) -> None:
    seen: dict[str, PurePosixPath] = {}
    folders: set[str] = {same_name_key(str(above)) for path in paths for above in path.parents}
    for path in paths:
        key = same_name_key(str(path))
        if key in seen or key in folders:
            raise DataError(f"the archive holds two entries of the name '{shown(path)}'; keep one")
        seen[key] = path


def _write(
    opened: zipfile.ZipFile,
    chosen: list[tuple[zipfile.ZipInfo, PurePosixPath]],
    folder: Path,
    limits: ArchiveLimits,
) -> None:
    total = 0
    for entry, path in chosen:
        target = folder.joinpath(*path.parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        written = 0
        # Exclusive, and never through a link: nothing that is there is written to.
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        with os.fdopen(descriptor, "wb") as file, opened.open(entry) as source:
            while block := source.read(_BLOCK):
                written += len(block)
                total += len(block)
                if written > limits.file_bytes or total > limits.total_bytes:
                    raise DataError(f"{shown(path)}: unpacks to more than it may; make it smaller")
                file.write(block)


def _megabytes(count: int) -> str:
    return f"{count / (1 << 20):,.0f} MiB" if count >= 1 << 20 else f"{count:,} bytes"
