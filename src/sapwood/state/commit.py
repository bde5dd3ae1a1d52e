"""Writing a version in the order that makes it atomic, and removing what killed writers left."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sapwood.cache import file_sha256
from sapwood.errors import StateError
from sapwood.state.files import ASIDE, discard, make_folder, put, settle, sync_folder, write_aside, writing
from sapwood.state.lock import LOCK, OWNER
from sapwood.state.records import (
    POINTER,
    TASKS,
    VERSIONS,
    Version,
    compose,
    id_number,
    kept_versions,
    load_current,
    pointer_text,
    version_path,
)

if TYPE_CHECKING:
    from torch import Tensor

Contents = Mapping[str, "Mapping[str, Tensor] | str"]
"""Relative path to what is written there."""

_JUNK = (".DS_Store", "Thumbs.db", "desktop.ini")


def publish(
    root: Path,
    current: Version | None,
    record: Mapping[str, Any],
    kept: Mapping[str, Any],
    files: Contents,
    *,
    parent: str | None,
    note: str,
) -> Version:
    """Write files, version and pointer, in this order; the caller holds the lock."""
    entries = {name: dict(entry) for name, entry in kept.items()}
    with writing(root):
        for name, content in files.items():
            target = root / name
            if os.path.lexists(target):
                raise StateError(f"{target} belongs to an earlier version, which is immutable; use free_task_folder")
            make_folder(target.parent)
            temporary = write_aside(target.parent, content)
            entries[name] = {"sha256": file_sha256(temporary), "bytes": temporary.stat().st_size}
            settle(temporary, target)
        version, data = compose(
            record,
            entries,
            number=current.number + 1 if current else 1,
            parent=parent,
            previous=current.id if current else None,
            note=note,
        )
        make_folder(root / VERSIONS)
        put(version_path(root, version.id), data)
        put(root / POINTER, pointer_text(version.id))
    return version


def remove_others(root: Path, kept: Sequence[Version]) -> list[str]:
    """Remove the version files of all but ``kept``, oldest first, then what only those named; returns their ids.

    The oldest first: killed in between, what is left is a prune that kept more.
    """
    ids = {version.id for version in kept}
    others = {path: id_number(path.stem) for path in (root / VERSIONS).glob("v*.json") if path.stem not in ids}
    removed = []
    with writing(root):
        for _, path in sorted((number, path) for path, number in others.items() if number is not None):
            path.unlink(missing_ok=True)
            removed.append(path.stem)
        sync_folder(root / VERSIONS)  # a file is only removed once no version on the disk names it
    sweep(root, kept)
    return removed


def sweep_uncommitted(root: Path) -> None:
    """Remove what killed writers left. Skipped where a version cannot be read: nothing that may count is removed."""
    with suppress(StateError):
        sweep(root, kept_versions(root, load_current(root)))


def sweep(root: Path, kept: Sequence[Version]) -> None:
    """Remove unfinished files everywhere, version files that were never committed, and task files no version names.

    Only folders that are the state's own are entered, links never, ``training/`` never.
    """
    ids = {version.id for version in kept}
    named = {root / name for version in kept for name in version.record["files"]}
    for path in [*root.glob(f"{ASIDE}*"), *(root / VERSIONS).glob(f"{ASIDE}*")]:
        discard(path)
    for path in (root / VERSIONS).glob("v*.json"):
        if id_number(path.stem) is not None and path.stem not in ids:
            discard(path)
    if (root / TASKS).is_symlink():
        return
    for folder, _, names in os.walk(root / TASKS, topdown=False):
        for name in names:
            if Path(folder, name) not in named:
                discard(Path(folder, name))
        with suppress(OSError):  # not empty
            os.rmdir(folder)


def refuse_foreign(root: Path) -> None:
    """Refuse to make a state where something is; what a killed ``create`` left does not count."""
    if (root / POINTER).is_file():
        raise StateError(f"{root} is a state already; give another folder, or open it")
    if not os.path.lexists(root):
        return
    if not root.is_dir():
        raise StateError(f"{root} is not a folder; give a new or empty folder for the state")

    def is_leftover(path: Path) -> bool:
        if path.name == VERSIONS and path.is_dir():
            return all(is_leftover(each) or id_number(each.stem) == 1 for each in path.iterdir())
        return path.name in (LOCK, OWNER, *_JUNK) or path.name.startswith(ASIDE)

    foreign = sorted(path.name for path in root.iterdir() if not is_leftover(path))
    if foreign:
        raise StateError(
            f"{root} is not empty and not a sapwood state (it holds {foreign[0]!r}); give a new or empty folder"
        )
