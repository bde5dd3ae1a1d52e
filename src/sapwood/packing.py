"""A state together with its backbone, for machines that have neither network nor cache."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from sapwood.backbones.packed import FOLDER, open_recorded, save_backbone
from sapwood.errors import ConfigError, StateError
from sapwood.probes import kept_counts
from sapwood.progress import Progress
from sapwood.state import State
from sapwood.state.files import put, read_bytes, read_checked, sync_folder, writing
from sapwood.state.records import POINTER, StateMoved, pointer_text, version_path
from sapwood.wording import counted


@dataclass(frozen=True)
class Packed:
    """What was packed.

    Attributes:
        path: the new state folder.
        version: id of its only version, the one that was packed.
        state_bytes: of the state's files.
        backbone_bytes: of the backbone's.
        licence: of the backbone's weights.
    """

    path: Path
    version: str
    state_bytes: int
    backbone_bytes: int
    licence: str


def pack(state: State, out: str | os.PathLike[str], *, progress: Progress | None = None) -> Packed:
    """Write the current version and its backbone to a new folder, which opens, predicts and learns like any state.

    Earlier versions stay behind. The folder is there whole or not at all.

    Args:
        state: whose files are copied after a check of their sha256.
        out: a folder that is not there, or empty.
        progress: listens.

    Raises:
        UsageError: ``out`` holds something, or the backbone cannot be kept in a folder.
        SapwoodError: the disk is full, or the folder cannot be written.
    """
    target, progress = Path(out), progress or Progress()
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise ConfigError(f"{target} is there already; give a folder that is not, or an empty one")
    if state.path.resolve() in target.resolve().parents:
        raise ConfigError(f"{target} lies inside the state {state.path}; give a folder elsewhere")
    return state.reading(lambda: _pack(state, target, progress))


def _pack(state: State, target: Path, progress: Progress) -> Packed:
    version = state.version
    info = version.record["backbone"]
    progress.note(f"packing {info['name']} (weights: {info['licence']})")
    backbone = open_recorded(info, None, state.path)
    if backbone.info.sha256 != info["sha256"]:
        raise StateError(
            f"{state.path} was made with {info['name']} of sha256 {info['sha256'][:12]}, but those found now have "
            f"{backbone.info.sha256[:12]}; put the original weights back"
        )
    if count := kept_counts(version.record):
        progress.note(
            f"{counted(count, 'picture')} kept in the state to measure on go along; `sapwood probe` removes them"
        )
    with writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.parent / f".{target.name}-{uuid4().hex}"
        aside.mkdir()
        try:
            copied = _copy(state, aside)
            save_backbone(backbone, aside / FOLDER)
            written = [file for file in (aside / FOLDER).iterdir() if file.is_file()]
            for file in written:
                with open(file, "rb+") as stream:
                    os.fsync(stream.fileno())
            put(aside / POINTER, pointer_text(version.id))  # last: before it, this is no state
            sizes = sum(file.stat().st_size for file in written)
            if target.is_dir():
                target.rmdir()
            os.rename(aside, target)
            sync_folder(target.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return Packed(target, version.id, copied, sizes, info["licence"])


def _copy(state: State, root: Path) -> int:
    """Copy the files of the version that is open; gives their bytes."""
    version, total = state.version, 0
    own = version_path(state.path, version.id)
    try:
        described = read_bytes(own)
        for name, entry in version.record["files"].items():
            data = read_checked(state.path / name, entry["bytes"], entry["sha256"])
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            put(root / name, data)
            total += len(data)
    except StateError as error:
        if own.exists():
            raise
        raise StateMoved(f"{state.path}: version {version.id} was pruned while it was packed; pack again") from error
    copy = version_path(root, version.id)
    copy.parent.mkdir()
    put(copy, described)
    return total + len(described)
