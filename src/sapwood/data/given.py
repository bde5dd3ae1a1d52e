"""Whatever a caller hands over for measuring or predicting, as ``Pictures``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sapwood.data.pictures import Pictures, as_picture
from sapwood.data.sources import has_splits, list_pictures, read_data, read_split


def read_test_data(data: Any) -> Pictures:
    """Labelled pictures to measure on: the test part where the data comes in parts, else all of it."""
    if isinstance(data, str | Path) and has_splits(data):
        return read_split(data, "test")
    return read_data(data)


def as_pictures(things: Any) -> Pictures:
    """Pictures without labels: a path, a list of paths and folders, or pictures of any kind in memory."""
    if isinstance(things, Pictures):
        return things
    if isinstance(things, str | Path):
        return list_pictures([things])
    if isinstance(things, Iterable) and not isinstance(things, bytes) and not hasattr(things, "shape"):
        listed = list(things)
        if all(isinstance(thing, str | Path) for thing in listed):
            return list_pictures(listed)
        return Pictures(as_picture(thing, name=f"picture {index}") for index, thing in enumerate(listed))
    return Pictures([as_picture(things, name="picture 0")])
