"""Files that are whole or not there: written aside, synced, renamed; checked against their sha256 when read."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from uuid import uuid4

from sapwood.errors import SapwoodError, StateError

if TYPE_CHECKING:
    from torch import Tensor

ASIDE = ".aside-"
"""First characters of a file that is not finished; whoever writes next removes it."""

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what the operating system refuses inside the block into one line (exit code 1)."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            what = f"no space left on the disk of {folder}; the state is unchanged: free some space"
        else:
            reason = error.strerror or str(error)
            what = f"{folder} cannot be written ({reason}); the state is unchanged: make the folder writable"
        raise SapwoodError(f"{what} and run the command again") from error


def safe_relative(name: object) -> bool:
    """Whether a path from a record stays inside the folder: relative, ``/`` between parts, no ``..``.

    >>> [safe_relative(name) for name in ("tasks/0001-birds/head.safetensors", "../x", "/x", "a//b", "C:/x")]
    [True, False, False, False, False]
    """
    if not isinstance(name, str) or not name or re.search(r"[\x00-\x1f\\:]", name):
        return False
    return all(part not in ("", ".", "..") for part in name.split("/")) and not PurePosixPath(name).is_absolute()


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable, where the system can (not on Windows, not on every network disk)."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, each of them durable."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in reversed(missing):
        sync_folder(each.parent)


def write_aside(
    folder: Path, content: Mapping[str, Tensor] | str | bytes, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a new file under a temporary name in ``folder`` and sync it; ``settle`` gives it its real name.

    Tensors become safetensors with ``metadata`` in the header, text becomes UTF-8. A failed write leaves nothing.
    """
    temporary = folder / f"{ASIDE}{uuid4().hex}"
    try:
        if isinstance(content, str | bytes):
            temporary.write_bytes(encode(content) if isinstance(content, str) else content)
        else:
            temporary.touch()
            usual = temporary.stat().st_mode
            _save_tensors(content, temporary, metadata)
            temporary.chmod(usual)  # safetensors makes files that nobody but their owner may read
        # O_RDWR: Windows syncs only handles that may write.
        handle = os.open(temporary, os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except BaseException:
        discard(temporary)
        raise
    return temporary


def settle(temporary: Path, target: Path) -> None:
    """Give a file written aside its real name, in one step, and make that durable."""
    try:
        os.replace(temporary, target)
    except BaseException:
        discard(temporary)
        raise
    sync_folder(target.parent)


def put(target: Path, content: Mapping[str, Tensor] | str | bytes) -> None:
    """Write ``target`` atomically: afterwards it is the old file or the whole new one."""
    settle(write_aside(target.parent, content), target)


def discard(path: Path) -> None:
    """Remove a file if that is possible; leftovers never hinder, so a failure is no error."""
    with suppress(OSError):
        path.unlink()


def encode(text: str) -> bytes:
    """UTF-8 that also carries the lone surrogates Python makes of undecodable file names."""
    return text.encode("utf-8", "surrogatepass")


def read_bytes(path: Path) -> bytes:
    """All bytes of a file of the state.

    Raises:
        StateError: it is missing or cannot be read; the line names it.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise StateError(f"{path} is missing; restore it from a copy of the state") from error
    except OSError as error:
        raise StateError(f"{path} cannot be read ({error.strerror}); make it readable for this user") from error


def read_checked(path: Path, size: int, sha256: str) -> bytes:
    """All bytes of a file whose size and sha256 must be those given (else StateError naming the file)."""
    data = read_bytes(path)
    if len(data) != size:
        raise StateError(f"{path} has {len(data)} bytes, expected {size}; restore it from a copy of the state")
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise StateError(
            f"{path} is damaged: its sha256 is {found[:16]}…, expected {sha256[:16]}…; "
            "restore it from a copy of the state"
        )
    return data


def parse_tensors(data: bytes, path: Path) -> dict[str, Tensor]:
    """Tensors (on the CPU) from the bytes of a safetensors file; ``path`` is for the error."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise StateError(f"{path} is no readable safetensors file ({error}); restore it from a copy") from error


def _save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None) -> None:
    """Stream tensors to a safetensors file; views and tensors that share memory are written as they look."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        # save_file refuses tensors that share memory (InfLoRA's common A): each gets its own.
        own = tensor.detach().cpu().contiguous()
        if own.untyped_storage().data_ptr() in storages:
            own = own.clone()
        storages.add(own.untyped_storage().data_ptr())
        plain[name] = own
    try:
        save_file(plain, path, dict(metadata) if metadata else None)
    except SafetensorError as error:
        # The writer is Rust: the system's error number survives only in the text.
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        raise
