"""Kinds of task: naming pictures, drawing masks."""

from __future__ import annotations

from typing import Any

from sapwood.data.masks import is_mask_data
from sapwood.errors import UnknownName
from sapwood.kinds.base import Kind, Round
from sapwood.kinds.classification import Classification
from sapwood.kinds.segmentation import Segmentation

KINDS: dict[str, Kind] = {kind.name: kind for kind in (Classification(), Segmentation())}


def find_kind(name: str) -> Kind:
    """A kind of task by its name.

    Raises:
        UnknownName: there is none of that name.
    """
    if name not in KINDS:
        raise UnknownName(f"no kind of task {name!r}. Known kinds: {', '.join(KINDS)}")
    return KINDS[name]


def kind_of(data: Any) -> Kind:
    """The kind of task that data are for: masks beside the pictures make it a segmentation."""
    return KINDS["segmentation" if is_mask_data(data) else "classification"]


__all__ = ["KINDS", "Kind", "Round", "find_kind", "kind_of"]
