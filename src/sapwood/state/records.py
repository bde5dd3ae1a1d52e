"""What a version says: its record, its id, and the pointer that names the current one."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sapwood.errors import StateError
from sapwood.state.files import encode, read_bytes, read_checked, safe_relative

FORMAT = 1
"""The newest format of a state folder that this library reads, and the one it writes."""

POINTER = "sapwood.json"
VERSIONS = "versions"
TASKS = "tasks"
OWN_KEYS = ("format", "version", "number", "parent", "previous", "created", "note", "files")
"""Keys of a record that the state itself writes; whatever the caller gives under them is replaced."""

_LISTED = 6
_RESTORE = "restore it from a copy of the state"
_ID = re.compile(r"v(\d{4,12})-([0-9a-f]{8})")


class StateMoved(StateError):
    """The version that was opened has been removed by ``prune`` meanwhile; opening the state again helps."""


@dataclass(frozen=True)
class Version:
    """One committed version: ``id`` such as ``v0002-1a2b3c4d``, its number, and its record (plain JSON values).

    In ``record``, ``parent`` is the version that ``undo`` returns to, ``previous`` the one that was current before.
    """

    id: str
    number: int
    record: Mapping[str, Any]


def id_number(identifier: object) -> int | None:
    """Number in a version id, None for anything that is not one.

    >>> id_number("v0002-1a2b3c4d"), id_number("../v0002-1a2b3c4d")
    (2, None)
    """
    match = _ID.fullmatch(identifier) if isinstance(identifier, str) else None
    return int(match[1]) if match else None


def compose(
    content: Mapping[str, Any],
    files: Mapping[str, Mapping[str, Any]],
    *,
    number: int,
    parent: str | None,
    previous: str | None,
    note: str,
) -> tuple[Version, bytes]:
    """A new version and the bytes of its file.

    The id ends in the first 8 hexadecimal digits of the sha256 of those bytes, so that any change shows; it stands in
    the file's name and not inside.
    """
    own = {
        "format": FORMAT,
        "number": number,
        "parent": parent,
        "previous": previous,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "note": note,
    }
    rest = {key: value for key, value in content.items() if key not in OWN_KEYS}
    try:
        text = json.dumps({**own, **rest, "files": files}, ensure_ascii=False, allow_nan=False, indent=1)
    except (TypeError, ValueError) as error:
        raise StateError(f"the record is not plain JSON ({error}); use None where nothing was measured") from error
    data = encode(text + "\n")
    identifier = f"v{number:04d}-{hashlib.sha256(data).hexdigest()[:8]}"
    # Parsed again: what a commit returns is what the next reader will see (lists for tuples, text for keys).
    return Version(identifier, number, {**json.loads(data), "version": identifier}), data


def version_path(root: Path, identifier: str) -> Path:
    """Where the record of a version lies."""
    return root / VERSIONS / f"{identifier}.json"


def read_version(root: Path, identifier: str) -> Version:
    """Read and check one version.

    Raises:
        StateError: missing, damaged, newer than this library, or naming files outside the folder.
    """
    path = version_path(root, identifier)
    data = read_bytes(path)
    if hashlib.sha256(data).hexdigest()[:8] != identifier[-8:]:
        raise StateError(f"{path} is damaged: it does not match its id; restore it from a copy of the state")
    record = _parse(data, path)
    _check_format(record, path)
    number = id_number(identifier)
    if number is None or record.get("number") != number:
        raise StateError(f"{path} holds version number {record.get('number')!r}; restore it from a copy of the state")
    for key in ("parent", "previous"):
        earlier = record.get(key)
        known = id_number(earlier)
        if earlier is not None and (known is None or known >= number):
            raise StateError(f"{path} names {earlier!r} as its {key}, which is no earlier version")
    files = record.get("files")
    if not isinstance(files, dict):
        raise StateError(f"{path} lists no files; restore it from a copy of the state")
    for name, entry in files.items():
        if not safe_relative(name):
            raise StateError(f"{path} names a file outside the state ({name!r}); the state was not opened")
        described = (
            isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256"), str)
        )
        if not described:
            raise StateError(f"{path} gives no size and sha256 for {name!r}; restore it from a copy of the state")
    return Version(identifier, number, {**record, "version": identifier})


def pointer_text(identifier: str) -> str:
    """Content of ``sapwood.json``."""
    return json.dumps({"format": FORMAT, "version": identifier}) + "\n"


def read_pointer(root: Path) -> str:
    """Id of the current version.

    Raises:
        StateError: not a state folder, a newer format, or broken JSON.
    """
    path = root / POINTER
    try:
        folder, there = root.is_dir(), path.exists()
    except OSError as error:
        raise StateError(f"{path} cannot be read ({error.strerror}); make it readable for this user") from error
    if not folder:
        raise StateError(f"{root}: no such state folder; `sapwood learn` makes one")
    if not there:
        raise StateError(f"{root} is not a sapwood state (it holds no {POINTER}); give the folder that `learn` wrote")
    pointer = _parse(read_bytes(path), path)
    _check_format(pointer, path)
    identifier = pointer.get("version")
    if id_number(identifier) is None:
        raise StateError(f"{path} names no version (found {identifier!r}); restore it from a copy of the state")
    return str(identifier)


def load_current(root: Path, *, whole: bool = True) -> Version:
    """The version the pointer names, if ``whole`` with all its files there and of the right size; needs no lock.

    If something is missing because another process moved on and pruned, the pointer is read again.
    """
    identifier = read_pointer(root)
    while True:
        try:
            version = read_version(root, identifier)
            if whole:
                check_present(root, version, f"{_RESTORE}, or go back to a whole version (`undo`, `rollback`)")
            return version
        except StateError:
            again = read_pointer(root)
            if again == identifier:
                raise
            identifier = again


def newest_first(root: Path, current: Version) -> Iterator[Version]:
    """The committed versions that are still there, from the current one back; each is read when it is asked for.

    A version file left by a killed commit is not among them: the chain of ``previous`` from the current version has
    another id at its number, or no such number yet.

    Raises:
        StateError: the next one is damaged.
    """
    version: Version | None = current
    oldest = current.number
    while version is not None:
        yield version
        oldest = version.number
        previous = version.record.get("previous")
        version = None if previous is None else _read_if_there(root, previous)
    # Older than a pruned stretch: the chain cannot vouch for these, so they count as committed.
    numbers = {path.stem: id_number(path.stem) for path in (root / VERSIONS).glob("v*.json")}
    earlier = [(number, name) for name, number in numbers.items() if number is not None and number < oldest]
    for _, name in sorted(earlier, reverse=True):
        if version := _read_if_there(root, name):
            yield version


def kept_versions(root: Path, current: Version) -> list[Version]:
    """The same as a list, oldest first."""
    return list(newest_first(root, current))[::-1]


def find_version(root: Path, current: Version, wanted: str) -> Version:
    """The version that somebody names: by its number (``v3``, ``v0003``) or its id (``v0003-1a2b3c4d``).

    Raises:
        StateError: none of those that are still there; the line lists them.
    """
    match = re.fullmatch(r"v?(\d{1,12})(-[0-9a-f]{1,8})?", wanted)
    seen = []
    for version in newest_first(root, current):
        if match and version.number == int(match[1]) and version.id.split("-")[1].startswith((match[2] or "-")[1:]):
            return version
        seen.append(version.id)
    there = ", ".join(reversed(seen[:_LISTED])) + (f" and {len(seen) - _LISTED} earlier" if seen[_LISTED:] else "")
    raise StateError(f"{root} has no version {wanted!r}; it has {there}")


def slug(name: str) -> str:
    """Safe folder name of at most 40 characters ``a-z0-9-`` for any task name.

    >>> slug("Vögel: Eulen & Käuze"), slug("../.."), slug("鳥")
    ('vogel-eulen-kauze', 'task', 'task')
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:40].strip("-") or "task"


def _read_if_there(root: Path, identifier: str) -> Version | None:
    try:
        return read_version(root, identifier)
    except StateError:
        if version_path(root, identifier).exists():
            raise
        return None


def check_present(root: Path, version: Version, remedy: str = _RESTORE) -> None:
    """Raise StateError naming the first of a version's files that is missing or of the wrong size."""
    for name, entry in version.record["files"].items():
        path = root / name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise StateError(f"{path} is missing; {remedy}") from error
        if size != entry["bytes"]:
            raise StateError(f"{path} has {size} bytes, expected {entry['bytes']}; {remedy}")


def check_whole(root: Path, version: Version) -> None:
    """Raise StateError naming the first of a version's files that is missing or has other bytes than it was given."""
    check_present(root, version)
    for name, entry in version.record["files"].items():
        read_checked(root / name, entry["bytes"], entry["sha256"])


def _parse(data: bytes, path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StateError(f"{path} is not readable JSON ({error}); restore it from a copy of the state") from error
    if not isinstance(parsed, dict):
        raise StateError(f"{path} holds no JSON object; restore it from a copy of the state")
    return parsed


def _check_format(record: Mapping[str, Any], path: Path) -> None:
    found = record.get("format")
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise StateError(f"{path} gives no known format (found {found!r}); restore it from a copy of the state")
    if found > FORMAT:
        raise StateError(
            f"{path} is in format {found}, this sapwood reads formats up to {FORMAT}: upgrade sapwood to open the state"
        )
