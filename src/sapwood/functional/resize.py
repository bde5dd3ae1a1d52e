"""Bringing maps of logits to the size of pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_AT_ONCE = 2**26  # upsampled numbers held at once, a quarter GiB


def at_size(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Logits [B, K, h, w] at (H, W) pixels: bilinear, corners not aligned, as the field's segmentation codes do.

    >>> at_size(torch.tensor([[[[0.0, 4.0]]]]), (1, 4)).tolist()
    [[[[0.0, 1.0, 3.0, 4.0]]]]
    """
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def argmax_at_size(logits: Tensor, size: Sequence[int]) -> Tensor:
    """``at_size(logits, size).argmax(1)`` [B, H, W], a few channels at a time: large pictures fit into memory.

    >>> argmax_at_size(torch.tensor([[[[0.0, 4.0]], [[1.0, 1.0]]]]), (1, 4)).tolist()
    [[[1, 0, 0, 0]]]
    """
    count = max(1, _AT_ONCE // (logits.shape[0] * size[0] * size[1]))
    best: Tensor | None = None
    found: Tensor | None = None
    for first in range(0, logits.shape[1], count):
        value, channel = at_size(logits[:, first : first + count], size).max(1)
        if best is None or found is None:
            best, found = value, channel
        else:
            # Strictly greater: of equal logits the first channel wins, as argmax has it.
            found = torch.where(value > best, channel + first, found)
            best = torch.maximum(value, best)
    if found is None:
        raise ValueError("a map of logits without channels has no best one")
    return found
