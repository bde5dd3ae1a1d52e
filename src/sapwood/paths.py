"""Paths as people type them."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with ``~`` and ``~user`` replaced by the home folder; as it is where there is no such user.

    >>> expanded("~nobody-of-this-name/march").as_posix()
    '~nobody-of-this-name/march'
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
