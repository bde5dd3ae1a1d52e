"""How far scores are probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 15


def expected_calibration_error(score: Tensor, right: Tensor, bins: int = BINS) -> float | None:
    """ECE: how far the score of the predicted class is from the share that is right, over bins of equal width.

    sum_b (n_b / n) |right_b - score_b| over ``bins`` intervals of (0, 1], b's picture count, share right and mean score
    (Guo, Pleiss, Sun and Weinberger, ICML 2017, eq. 3; 15 bins as there). A score of 0 falls into the first bin.

    Args:
        score: [n], probability of the predicted class.
        right: [n] bool.
        bins: how many.

    Returns:
        A fraction in 0..1; None without pictures.

    >>> expected_calibration_error(torch.tensor([0.5, 0.5, 1.0, 1.0]), torch.tensor([True, False, True, False]))
    0.25
    """
    if not len(score):
        return None
    score, right = score.detach().cpu().double(), right.detach().cpu().double()
    place = ((score * bins).ceil().long() - 1).clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, right - score)
    return float(gap.abs().sum() / len(score))
