"""Where names and ticks of a chart go: pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence


def apart(heights: Sequence[float], least: float, bottom: float, top: float) -> list[float]:
    """Heights moved as little as possible (least squares) so that none is nearer than ``least`` to another.

    Their order stays; where the room allows, they stay between ``bottom`` and ``top``.

    >>> apart([10.0, 10.0, 50.0], 4, 0, 100)
    [8.0, 12.0, 50.0]
    >>> apart([99.0, 100.0], 4, 0, 100)
    [96.0, 100.0]
    """
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    # With what the distances take away subtracted it is an isotonic regression: pool what is out of order.
    pools: list[tuple[float, int]] = []
    for rank, index in enumerate(order):
        mean, size = heights[index] - rank * least, 1
        while pools and pools[-1][0] > mean:
            before, many = pools.pop()
            mean, size = (before * many + mean * size) / (many + size), many + size
        pools.append((mean, size))
    flat = [mean for mean, size in pools for _ in range(size)]
    most = float(max(bottom, top - (len(heights) - 1) * least))
    found = [0.0] * len(heights)
    for rank, index in enumerate(order):
        found[index] = min(max(flat[rank], bottom), most) + rank * least
    return found


def clusters(values: Sequence[float], factor: float) -> list[list[int]]:
    """Indices of positive numbers in groups; from one group to the next it is more than ``factor`` times.

    >>> clusters([100.0, 5000.0, 120.0], 3)
    [[0, 2], [1]]
    """
    found: list[list[int]] = []
    for index in sorted(range(len(values)), key=lambda index: values[index]):
        if found and values[index] <= factor * values[found[-1][-1]]:
            found[-1].append(index)
        else:
            found.append([index])
    return found


def decades(values: Sequence[float]) -> tuple[list[tuple[float, str]], float]:
    """Ticks (position, name) of a logarithmic axis around counts, and the position that stands for nothing.

    >>> decades([298_762.0, 0.0])
    ([(10000.0, '0'), (100000.0, '100 k'), (1000000.0, '1 M')], 10000.0)
    >>> decades([0.0])
    ([(1.0, '0')], 1.0)
    """
    positive = [value for value in values if value > 0]
    if not positive:
        return [(1.0, "0")], 1.0
    first, last = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    ticks = [(10.0**power, _name(power)) for power in range(first, max(first + 1, last) + 1)]
    nothing = 10.0 ** (first - 1)
    return ([(nothing, "0"), *ticks] if len(positive) < len(values) else ticks), nothing


def _name(power: int) -> str:
    thousands, rest = divmod(max(power, 0), 3)
    unit = ("", " k", " M", " G", " T")[min(thousands, 4)]
    return f"{10**rest}{unit}" if power >= 0 else f"{10.0**power:g}"
