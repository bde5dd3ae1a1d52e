"""A state folder: open, read, commit, undo, rollback, prune."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sapwood.errors import StateError
from sapwood.paths import expanded
from sapwood.state.commit import Contents, publish, refuse_foreign, remove_others, sweep, sweep_uncommitted
from sapwood.state.files import discard, make_folder, parse_tensors, read_checked, safe_relative, writing
from sapwood.state.lock import LOCK, WriterLock
from sapwood.state.records import (
    POINTER,
    TASKS,
    StateMoved,
    Version,
    check_present,
    check_whole,
    find_version,
    kept_versions,
    load_current,
    newest_first,
    read_pointer,
    read_version,
    slug,
    version_path,
)
from sapwood.state.training import TrainingFolder

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class State:
    """One opened version of a state folder, and the way to commit the next.

    Reading needs no lock and writes nothing. Killed at any moment, the folder is at the version before or the one
    after: the replacement of the pointer ``sapwood.json`` is the commit point.

    Attributes:
        path: the folder.
        version: the version that was opened, or committed last through this object.
    """

    def __init__(self, path: Path, version: Version, *, whole: bool = True) -> None:
        self.path = path
        self.version = version
        self._whole = whole
        self.made_folder = False
        self._lock = WriterLock(path)

    @staticmethod
    def exists(path: str | os.PathLike[str]) -> bool:
        """Whether the folder holds a state (which may still be damaged)."""
        return (expanded(path) / POINTER).is_file()

    @classmethod
    def create(cls, path: str | os.PathLike[str], record: Mapping[str, Any]) -> State:
        """Make a state whose version 1 holds ``record`` and no files.

        Raises:
            StateError: there is a state already, or a folder with other things in it.
        """
        root = expanded(path)
        refuse_foreign(root)
        there = root.is_dir()
        with writing(root):
            make_folder(root)
        with WriterLock(root).hold():
            refuse_foreign(root)  # once more: somebody may have been faster
            sweep(root, [])
            state = cls(root, publish(root, None, record, {}, {}, parent=None, note="created"))
        state.made_folder = not there
        return state

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, whole: bool = True) -> State:
        """Open the current version.

        Args:
            path: the folder.
            whole: all its files must be there; not for who reads records alone, or goes back.

        Raises:
            StateError: no state, a newer format, broken JSON, or a file that is missing or of the wrong size.
        """
        root = expanded(path)
        return cls(root, load_current(root, whole=whole), whole=whole)

    @classmethod
    def read(cls, path: str | os.PathLike[str], load: Callable[[State], T]) -> T:
        """``load(state)`` on the current version; if that one is pruned meanwhile, once more on the new one."""
        state = cls.open(path)
        return state.reading(lambda: load(state))

    def reading(self, load: Callable[[], T]) -> T:
        """``load()`` on the version that is open; if it is pruned meanwhile, once more on the new one."""
        try:
            return load()
        except StateMoved:
            self.refresh()
            return load()

    @property
    def training(self) -> TrainingFolder:
        """The checkpoint of the task that is being learned."""
        return TrainingFolder(self.path / "training")

    def refresh(self) -> Version:
        """Go to the version the pointer names now."""
        self.version = load_current(self.path)
        return self.version

    def versions(self) -> list[Version]:
        """All committed versions that are still there, oldest first; the last is the current one on disk."""
        return kept_versions(self.path, load_current(self.path, whole=self._whole))

    def tensors(self, relative: str) -> dict[str, Tensor]:
        """Tensors (on the CPU) of a safetensors file of this version, after checking its size and sha256.

        Raises:
            StateError: no such file in this version, missing, or damaged; the line names the file.
            StateMoved: this version has been pruned by another process.
        """
        return parse_tensors(self._bytes(relative), self.path / relative)

    def text(self, relative: str) -> str:
        """Text of a file of this version, checked as in ``tensors``."""
        return self._bytes(relative).decode("utf-8", "surrogatepass")

    @contextmanager
    def writer(self) -> Iterator[State]:
        """Be the only writer; leftovers of killed ones are removed. ``commit`` and ``undo`` inside use the same lock.

        Raises:
            StateBusy: another writer is at work.
            StateError: another process committed since this object was opened.
        """
        with self._lock.hold() as outermost:
            if outermost:
                current = load_current(self.path, whole=self._whole)
                if current.id != self.version.id:
                    raise StateError(
                        f"{self.path} moved from version {self.version.id} to {current.id} since it was opened; "
                        "run the command again (in Python: open the state again)"
                    )
                sweep_uncommitted(self.path)
            yield self

    def free_task_folder(self, index: int, name: str) -> str:
        """Relative path of a new task's folder, such as ``tasks/0002-birds``; nothing is made.

        Where that folder exists (an undone round left it: versions are immutable), ``-2``, ``-3`` … is appended.
        """
        base = f"{TASKS}/{index:04d}-{slug(name)}"
        candidate, count = base, 1
        while os.path.lexists(self.path / candidate):
            count += 1
            candidate = f"{base}-{count}"
        return candidate

    def commit(self, record: Mapping[str, Any], files: Contents, note: str) -> Version:
        """Make the next version: new ``files`` first, then the record, then the pointer.

        Args:
            record: plain JSON values; keys the state owns are replaced. Of this version's files those that
                ``record["files"]`` names are kept (a mapping or a list of relative paths), no others.
            files: relative path below ``tasks/`` to tensors (safetensors) or text; never a path that exists.
            note: one line for ``show --versions``.

        Raises:
            StateBusy: another writer is at work.
            SapwoodError: full disk or read-only folder; the state is unchanged.
        """
        listed = self.version.record["files"]
        named: Iterable[str] = record.get("files") or ()
        if unknown := [name for name in named if name not in listed]:
            raise StateError(f"{self.path}: version {self.version.id} has no file {unknown[0]!r} to keep")
        for name in files:
            if not safe_relative(name) or not name.startswith(f"{TASKS}/"):
                raise StateError(f"{self.path}: a version's files lie below {TASKS}/, not at {name!r}")
        return self._publish(record, {name: listed[name] for name in named}, files, self.version.id, note)

    def undo(self) -> Version:
        """Commit a new version with the content of this one's parent; twice goes two commits back.

        Raises:
            StateError: there is nothing before, or it was pruned.
        """
        with self.writer():  # from here on nobody prunes what is gone back to
            parent = self.version.record.get("parent")
            if parent is None:
                raise StateError(f"{self.path}: nothing to undo, version {self.version.id} is the first of its line")
            if not version_path(self.path, parent).exists():
                raise StateError(
                    f"{self.path}: version {parent}, to undo to, was pruned; `rollback` goes to those left"
                )
            earlier = read_version(self.path, parent)
            note = f"undo of {self.version.id}: back to {earlier.id}"
            return self._publish_again(earlier, earlier.record.get("parent"), note)

    def rollback(self, to: str) -> Version:
        """Commit a new version with the content of any earlier one; ``undo`` takes this back.

        Args:
            to: the earlier version by number or id: ``v3``, ``v0003``, ``v0003-1a2b3c4d``.

        Raises:
            StateError: there is no such version (any more), it is the current one, or a file of it is damaged.
        """
        with self.writer():
            earlier = find_version(self.path, self.version, to)
            if earlier.id == self.version.id:
                raise StateError(f"{self.path} is at version {earlier.id} already; `show --versions` lists the others")
            return self._publish_again(earlier, self.version.id, f"rollback to {earlier.id}")

    def prune(self, keep: int) -> list[str]:
        """Remove all versions but the newest ``keep`` (at least 1), and the files that none of those names.

        Killed in between, some of the old versions are gone and the rest of the work is done by the next writer or
        ``prune``; readers of a version that goes meet ``StateMoved``.

        Returns:
            Ids of the versions that were removed, oldest first.

        Raises:
            StateBusy: another writer is at work.
            StateError: one of the versions to keep is damaged, or misses a file; nothing is removed.
        """
        if keep < 1:
            raise StateError(f"{self.path}: {keep} versions cannot be kept, the current one always stays: give >= 1")
        with self.writer():
            kept = list(islice(newest_first(self.path, self.version), keep))
            check_whole(self.path, kept[0])  # before what else there was to go back to is gone
            for version in kept[1:]:
                check_present(self.path, version)
            return remove_others(self.path, kept)

    def abandon(self) -> None:
        """Remove a state that was only created; its folder goes too if ``create`` made it and nothing else is in it.

        Raises:
            StateError: it has gone on from its first version, which may hold something worth keeping.
        """
        with self.writer():
            if self.version.number != 1:
                raise StateError(f"{self.path} is at version {self.version.id} already and is not removed")
            self.training.clear()
            with writing(self.path):
                (self.path / POINTER).unlink()  # from here on it is no state any more
            discard(version_path(self.path, self.version.id))
        discard(self.path / LOCK)
        folders = [version_path(self.path, self.version.id).parent, *([self.path] if self.made_folder else [])]
        for folder in folders:
            with suppress(OSError):  # not empty
                folder.rmdir()

    def _publish_again(self, earlier: Version, parent: str | None, note: str) -> Version:
        """Commit the content of an earlier version, once every byte of it has been looked at."""
        check_whole(self.path, earlier)
        return self._publish(earlier.record, earlier.record["files"], {}, parent, note)

    def _publish(
        self, record: Mapping[str, Any], kept: Mapping[str, Any], files: Contents, parent: str | None, note: str
    ) -> Version:
        with self.writer():
            try:
                self.version = publish(self.path, self.version, record, kept, files, parent=parent, note=note)
            except BaseException:
                # An interrupt may fall on either side of the commit point: what the disk says holds.
                with suppress(StateError):
                    self.version = load_current(self.path)
                sweep_uncommitted(self.path)
                raise
        return self.version

    def _bytes(self, relative: str) -> bytes:
        entry = self.version.record["files"].get(relative)
        if entry is None:
            known = ", ".join(sorted(self.version.record["files"])) or "none"
            raise StateError(f"{self.path}: version {self.version.id} has no file {relative!r}; it has: {known}")
        try:
            return read_checked(self.path / relative, entry["bytes"], entry["sha256"])
        except StateError as error:
            if version_path(self.path, self.version.id).exists():
                raise
            current = read_pointer(self.path)
            if current == self.version.id:
                raise
            raise StateMoved(
                f"{self.path}: version {self.version.id} was pruned while it was read; the state is now at {current}: "
                "run the command again"
            ) from error
