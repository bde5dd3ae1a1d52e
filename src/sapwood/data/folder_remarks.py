"""What a person should know of a folder of class folders, whatever its pictures show."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sapwood.data.files import PICTURE_SUFFIXES, folders_in, is_hidden, pictures_in
from sapwood.data.hub_dataset import is_dataset
from sapwood.data.names import shown
from sapwood.data.shards import find_shards
from sapwood.data.sources import existing, split_folders
from sapwood.wording import counted

_UNREAD = (".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".psd", ".svg", ".jxl", ".mp4", ".mov")
"""What cameras and programs call pictures that are not read here."""


def folder_remarks(data: Any) -> list[str]:
    """What to say of pictures that are passed over, and of class folders that hold folders alone, as rounds do."""
    if not isinstance(data, str | Path) or find_shards(data) or not (path := existing(data)).is_dir():
        return []
    if is_dataset(path):
        return []
    folder = split_folders(path).get("train", path)
    classes = folders_in(folder)
    loose = list(_files(folder, tuple(PICTURE_SUFFIXES)))
    unread = [name for child in classes for name in _files(child, _UNREAD)]
    return [
        *_passed_over(counted(len(loose), "picture") + " beside the class folders", loose),
        *_passed_over(counted(len(unread), "file") + " of a kind that is not read; save them as JPEG or PNG", unread),
        *_nested(folder, classes),
    ]


def _files(folder: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    with os.scandir(folder) as entries:
        found = [each for each in entries if each.name.lower().endswith(suffixes) and not is_hidden(each.name)]
    yield from sorted(each.name for each in found if each.is_file())


def _passed_over(what: str, names: Sequence[str]) -> list[str]:
    some = ", ".join(map(shown, names[:3])) + (", …" if len(names) > 3 else "")
    return [f"passed over: {what} ({some})"] if names else []


def _nested(folder: Path, classes: Sequence[Path]) -> list[str]:
    inner = {child: folders_in(child) for child in classes}
    # A folder's own pictures come first.
    deep = [
        child
        for child, own in inner.items()
        if len(own) > 1 and (first := next(pictures_in(child), None)) is not None and first.parent != child
    ]
    if not deep:
        return []
    child, own = deep[0], inner[deep[0]]
    names = ", ".join(shown(each.name) for each in own[:3]) + (", …" if len(own) > 3 else "")
    if len(deep) < len(inner):
        more = f", and {len(deep) - 1} more" if len(deep) > 1 else ""
        return [
            f"{shown(child.name)} holds folders alone ({names}), all pictures of which become the class "
            f"{child.name!r}{more}; if those are the classes, move them beside the others"
        ]
    return [
        f"the classes are the folders of {shown(folder)}, each with folders of its own ({shown(child.name)}: {names}); "
        f"if those are the classes, learn them from {shown(child)}"
    ]
