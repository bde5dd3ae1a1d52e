"""How far two networks' answers are apart."""

from __future__ import annotations

import math

from torch import Tensor

LIMIT = 1e-5
"""Between float32 networks of the same operations."""


def difference(given: Tensor, expected: Tensor) -> float:
    """Largest absolute difference of logits, in units of the largest logit where that is above 1.

    Float32 holds seven digits of a number, whatever its size: logits of 40 cannot agree to 1e-6.
    Infinite where the shapes differ or a number is none; classes that are ruled out (-inf) must be so in both.
    """
    if given.shape != expected.shape:
        return math.inf
    out = expected == -math.inf
    if not bool((out == (given == -math.inf)).all()):
        return math.inf
    given, expected = given.double()[~out], expected.double()[~out]
    if not bool(given.isfinite().all() and expected.isfinite().all()):
        return math.inf
    if not expected.numel():
        return 0.0
    return float((given - expected).abs().max() / expected.abs().max().clamp(min=1.0))
