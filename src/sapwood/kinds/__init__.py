"""Kinds of task: naming pictures, drawing masks."""

from __future__ import annotations

from typing import Any

from sapwood.data.masks import is_mask_data
from sapwood.kinds.base import Kind, Round
from sapwood.kinds.classification import Classification
from sapwood.kinds.segmentation import Segmentation

KINDS: dict[str, Kind] = {kind.name: kind for kind in (Classification(), Segmentation())}


def kind_of(data: Any) -> Kind:
    """The kind of task that data are for: masks beside the pictures make it a segmentation."""
    return KINDS["segmentation" if is_mask_data(data) else "classification"]


__all__ = ["KINDS", "Kind", "Round", "kind_of"]
