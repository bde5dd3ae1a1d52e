"""What a prediction takes on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch

from sapwood.backbones.base import height_width
from sapwood.network import Network

_TIMES = 3


@torch.no_grad()
def seconds_per_picture(network: Network, size: int | Sequence[int]) -> float:
    """Seconds from one view, uint8 [1, H, W, 3], to its logits: the median of three, after one to warm up."""
    blank = torch.zeros(1, *height_width(size), 3, dtype=torch.uint8)
    seconds = []
    for _ in range(_TIMES + 1):
        began = time.perf_counter()
        network.predict(blank)
        if network.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])
