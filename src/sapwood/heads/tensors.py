"""Features, and tensors as heads need them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from sapwood.data.rows import joined
from sapwood.errors import StateError

ENOUGH_HELD = 100
"""Held-out pictures that a temperature is chosen on alone; of fewer, one wrong answer more or less would move it."""


class Features(NamedTuple):
    """Pooled features of pictures and their classes.

    Attributes:
        x: [n, d] float32; where a round is learned also other ``data.rows.Rows``, which are read in blocks alike.
        y: [n] int64, class indices in learning order.
    """

    x: Tensor
    y: Tensor

    def joined(self, others: Features) -> Features:
        """These and ``others`` behind them; not copied where they are many."""
        return Features(cast("Tensor", joined(self.x, others.x)), torch.cat([self.y, others.y]))


def needed(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor of that name and shape, or a StateError that says what is wrong with it."""
    if name not in tensors:
        raise StateError(f"the head's file lacks the tensor {name!r}; it has {', '.join(sorted(tensors)) or 'none'}")
    if tensors[name].shape != shape:
        found = list(tensors[name].shape)
        raise StateError(f"the head's tensor {name!r} is {found}, but {list(shape)} with these settings")
    return tensors[name]


def in_full_precision(function: Any, x: Tensor) -> Tensor:
    """The function of float32 features outside autocast: logits of a statistics head do not survive bfloat16."""
    if torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            return function(x.float())
    return function(x.float())
