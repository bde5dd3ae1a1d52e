"""Bringing maps of logits to the size of pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


def argmax_at_size(logits: Tensor, size: Sequence[int], decide: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """``decide(at_size(logits, size)).argmax(1)`` [B, H, W], a few channels at a time: large pictures fit into memory.

    Args:
        logits: [B, C, h, w].
        size: (H, W).
        decide: [B, C, H, W] -> [B, K, H, W], C >= K; channel k of its result may depend on the channels k, 0 and K to
            C - 1 of its argument, at the same place. None for the logits themselves.

    >>> argmax_at_size(torch.tensor([[[[0.0, 4.0]], [[1.0, 1.0]]]]), (1, 4)).tolist()
    [[[1, 0, 0, 0]]]
    """
    classes = logits.shape[1] if decide is None else decide(logits[..., :1, :1]).shape[1]
    count = max(1, _AT_ONCE // (logits.shape[0] * size[0] * size[1]))
    best: Tensor | None = None
    found: Tensor | None = None
    for first in range(0, classes, count):
        last = min(first + count, classes)
        if decide is None:
            values = at_size(logits[:, first:last], size)
        else:
            parts = logits[:, :1], logits[:, max(first, 1) : last], logits[:, classes:]
            values = decide(at_size(torch.cat(parts, 1), size))[:, min(first, 1) :]
        value, channel = values.max(1)
        if best is None or found is None:
            best, found = value, channel
        else:
            # Strictly greater: of equal logits the first channel wins, as argmax has it.
            found = torch.where(value > best, channel + first, found)
            best = torch.maximum(value, best)
    if found is None:
        raise ValueError("a map of logits without channels has no best one")
    return found
