"""Labelled pictures in WebDataset shards: tar files in which the members of one name, but for the suffix, are a sample.

A sample holds a picture (``.jpg``, ``.png``, ``.webp`` …) and its class: ``.txt`` (the name), ``.cls`` (the name, or a
number that counts the lines of a ``classes.txt`` beside the shards from 0), or ``.json`` with ``label``. A shard is
read once to find where everything lies; the bytes of a picture are read when it is wanted.
"""

from __future__ import annotations

import json
import re
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sapwood.data.file_pictures import FilePictures
from sapwood.data.files import PICTURE_SUFFIXES, is_hidden
from sapwood.data.names import class_name, natural_key, shown
from sapwood.data.pictures import Picture
from sapwood.errors import DataError
from sapwood.paths import expanded

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_LABELS = (".cls", ".txt", ".json")
_CLASSES = "classes.txt"
_MOST_SHARDS = 1_000_000


class Part(NamedTuple):
    """Where a picture lies, and its class."""

    name: str
    label: str
    shard: int
    offset: int
    size: int


class ShardPictures(FilePictures):
    """Labelled pictures in shards; as compact as ``FilePictures``."""

    def __init__(self, shards: Sequence[Path] = ()) -> None:
        where = array("q")

        def files() -> Iterator[tuple[str, str]]:
            for part in _parts(shards):
                where.extend((part.shard, part.offset, part.size))
                yield part.name, part.label

        self._shards = tuple(shards)
        super().__init__(files(), str(shards[0].parent) if shards else "")
        self._where = np.frombuffer(where, np.int64).reshape(-1, 3) if where else np.zeros((0, 3), np.int64)

    def _picture(self, row: int) -> Picture:
        made = super()._picture(row)
        shard, offset, size = self._where[row].tolist()
        return Picture(made.name, partial(_read, self._shards[shard], offset, size), made.label)


def find_shards(data: str | Path) -> list[Path]:
    """The shards that are meant: a .tar file, several as ``train-{000..009}.tar``, or a folder of nothing but them.

    Empty if the data is something else.

    Raises:
        DataError: one of several is not there.
    """
    path = expanded(data)
    if path.suffix.lower() == ".tar" and (match := _RANGE.search(path.name)):
        first, last = match.groups()
        if not 0 <= int(last) - int(first) < _MOST_SHARDS:
            raise DataError(f"{shown(path)}: {{{first}..{last}}} counts no shards; the first number is the smaller")
        numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
        shards = [path.with_name(_RANGE.sub(number, path.name, count=1)) for number in numbers]
        if absent := [shard for shard in shards if not shard.is_file()]:
            raise DataError(f"{len(absent)} of {len(shards)} shards are not there, first: {shown(absent[0])}")
        return shards
    try:
        if path.suffix.lower() == ".tar" and path.is_file():
            return [path]
        if not path.is_dir():
            return []
        inside = [child for child in path.iterdir() if not is_hidden(child.name) and child.name != _CLASSES]
    except (OSError, ValueError):
        return []
    if not inside or any(child.suffix.lower() != ".tar" or not child.is_file() for child in inside):
        return []
    return sorted(inside, key=lambda child: natural_key(child.name))


def read_shards(shards: Sequence[Path]) -> ShardPictures:
    """The pictures of the shards, in their order; nothing is decoded.

    Raises:
        DataError: a shard cannot be read or ends too early, a sample has no picture or no class, or more than one, or
            a member is neither.
    """
    return ShardPictures(shards)


def _parts(shards: Sequence[Path]) -> Iterator[Part]:
    names: dict[Path, list[str]] = {}
    for number, shard in enumerate(shards):
        key, found = "", dict[str, Any]()
        for member, label in _members(shard):
            folder, _, base = member.name.rpartition("/")
            stem, _, suffix = base.partition(".")
            if f"{folder}/{stem}" != key:
                if found:
                    yield _part(shard, number, found, names)
                key, found = f"{folder}/{stem}", {}
            kind = "label" if label is not None else "picture"
            if kind in found:
                raise DataError(f"{shown(shard)}: sample {shown(key.strip('/'))} has more than one {kind}")
            found[kind] = member if label is None else (label, suffix)
            found["key"] = key.strip("/")
        if found:
            yield _part(shard, number, found, names)


def _members(shard: Path) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    """Each file in a shard, with its content if it says the class."""
    try:
        size = shard.stat().st_size
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # else it keeps all that were read
                if not member.isfile() or any(is_hidden(part) for part in member.name.split("/") if part != "."):
                    continue
                suffix = Path(member.name).suffix.lower()
                if suffix not in PICTURE_SUFFIXES and suffix not in _LABELS:
                    known = f"a picture and {', '.join(_LABELS)}"
                    raise DataError(f"{shown(shard)}: member {shown(member.name)} is unknown; a sample holds {known}")
                if member.offset_data + member.size > size:
                    raise DataError(f"{shown(shard)}: ends within {shown(member.name)}; the file was cut off")
                content = tar.extractfile(member) if suffix in _LABELS else None
                yield member, None if content is None else content.read()
            end = tar.offset
        with shard.open("rb") as file:
            file.seek(max(end, size - 2 * tarfile.BLOCKSIZE))
            mark = file.read()
        if end > size or not mark or any(mark):
            raise DataError(f"{shown(shard)}: ends too early; the file was cut off")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{shown(shard)}: is not a whole tar file without compression ({shown(error)})") from error


def _part(shard: Path, number: int, found: dict[str, Any], names: dict[Path, list[str]]) -> Part:
    key = shown(found["key"])
    for kind in ("picture", "label"):
        if kind not in found:
            wanted = "picture" if kind == "picture" else f"class ({', '.join(_LABELS)})"
            raise DataError(f"{shown(shard)}: sample {key} has no {wanted}")
    member, (content, suffix) = found["picture"], found["label"]
    where = f"{shard}, sample {found['key']}"
    label = class_name(_label(content, suffix.lower(), where, shard.parent, names), where)
    return Part(f"{shard}/{member.name}", label, number, member.offset_data, member.size)


def _label(content: bytes, suffix: str, where: str, folder: Path, names: dict[Path, list[str]]) -> str:
    try:
        value: Any = content.decode("utf-8-sig").strip()
        if suffix.endswith("json"):
            value = json.loads(value)["label"]
            if not isinstance(value, str | int) or isinstance(value, bool):
                raise TypeError(f"label is {value!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{shown(where)}: its class cannot be read ({shown(error)})") from error
    if suffix.endswith("txt") or not str(value).isdecimal():
        return str(value)
    if folder not in names:
        try:
            names[folder] = [line.strip() for line in (folder / _CLASSES).read_text("utf-8-sig").splitlines()]
        except (OSError, ValueError) as error:
            raise DataError(
                f"{shown(where)}: class {value} is a number; put the names beside the shards, one a line, in {_CLASSES}"
            ) from error
    if int(value) >= len(names[folder]):
        raise DataError(f"{shown(where)}: class {value}, but {_CLASSES} has {len(names[folder])} lines")
    return names[folder][int(value)]


def _read(shard: Path, offset: int, size: int) -> bytes:
    with shard.open("rb") as file:
        file.seek(offset)
        content = file.read(size)
    if len(content) < size:
        raise OSError("the shard is shorter than it was")
    return content
