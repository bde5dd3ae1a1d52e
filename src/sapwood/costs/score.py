"""NetScore: accuracy, size and operations in one number."""

from __future__ import annotations

import math


def netscore(accuracy: float, parameters_millions: float, gmacs: float) -> float | None:
    """NetScore (Wong 2018, arXiv 1806.05512, with the exponents 2, 1/2 and 1/2): 20 log10(a^2 / sqrt(p m)).

    CLoRA (arXiv 2507.19887) compares continual learners by it, with p the parameters that are fitted.

    Args:
        accuracy: a, in per cent: accuracy or mIoU.
        parameters_millions: p, fitted parameters in millions.
        gmacs: m, multiply-accumulates of one forward in units of 1e9, adapters not merged.

    Returns:
        The score; None where it has no value: nothing is fitted, or nothing is right.

    Raises:
        ValueError: ``accuracy`` is not in 0..100, ``parameters_millions`` is negative or ``gmacs`` not positive.

    >>> round(netscore(70.39, 3.21, 402.256), 2)
    42.79
    """
    if not 0 <= accuracy <= 100:
        raise ValueError(f"accuracy is in per cent, 0..100, got {accuracy}")
    if not (0 <= parameters_millions < math.inf and 0 < gmacs < math.inf):
        raise ValueError(f"parameters must be >= 0 and gmacs > 0, got {parameters_millions} and {gmacs}")
    if not accuracy or not parameters_millions:
        return None
    return 40 * math.log10(accuracy) - 10 * math.log10(parameters_millions * gmacs)
