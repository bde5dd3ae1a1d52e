"""Labels that the network before the round gives to background pixels of which it is certain enough (PLOP, SATS)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

Entropy = Literal["sum", "mean"]
Median = Literal["exact", "official_histogram"]

# Where a class's median is lower, this is its threshold: 0.001 is the official value for ``mean``, whose scores reach
# 1 / (K log M); for K = 10..20 that is 3 to 6 per cent of the range, which ``sum`` stretches to [0, 1].
MINIMUM: dict[Entropy, float] = {"sum": 0.05, "mean": 0.001}

# A score is counted by the leading bits of its float32 pattern (which orders numbers >= 0 as their values).
_DROPPED = 12
_SMALLEST = 2.0**-24
_OFFSET = (127 - 24) << (23 - _DROPPED)
_CELLS = (24 << (23 - _DROPPED)) + 1
_OFFICIAL_BINS = 100


def prediction_entropy(logits: Tensor, entropy: Entropy = "sum", channels: int | None = None) -> Tensor:
    """How uncertain every pixel's prediction is.

    With p = softmax(logits) over K channels: ``sum``, -(sum_c p_c log p_c) / log K, in [0, 1]. ``mean``, as PLOP's code
    has it: -(mean_c p_c log(p_c + 1e-8)) / (log(K + 1e-8) log M), M the channels after the round, in [0, 1/(K log M)].

    Args:
        logits: [B, K, H, W]; halves are computed in float32.
        entropy: ``sum`` or ``mean``.
        channels: M; needed by ``mean`` only.

    Returns:
        [B, H, W] of float32 or float64; no gradient.

    >>> logits = torch.tensor([[0.5, 0.5], [1.0, 1e-30]]).log().reshape(2, 2, 1, 1)
    >>> [round(score, 4) for score in prediction_entropy(logits).flatten().tolist()]
    [1.0, 0.0]
    """
    return _score(logits, entropy, channels)[0]


@torch.no_grad()
def entropy_thresholds(
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    entropy: Entropy = "sum",
    channels: int | None = None,
    median: Median = "exact",
    minimum: float | None = None,
) -> Tensor:
    """The entropy below which a prediction of the network before the round becomes a label, class by class.

    max(median, ``minimum``) of the scores (``prediction_entropy``) of all pixels labelled 0 that the network predicts
    as the class; ``minimum`` for a class that it never predicts. One pass, and scores are counted, not kept: 0.4 MB a
    class however many pixels there are. Source: PLOP (arXiv 2011.11390, sec. 3.3) and its code.

    Args:
        batches: pairs (teacher's logits [B, K, H, W], targets [B, H, W]), each used once.
        entropy, channels: as ``prediction_entropy`` has them.
        median: ``exact``, the median of the scores (of an even number, the mean of the middle two), rounded down to 12
            significant bits, so that it is never above the true one; ``official_histogram``, what PLOP's code
            computes: 100 bins on [0, 1], interpolated inside a bin that it finds by adding up the bins' indices where
            their counts were meant. Right only if the median lies in bin 0; else any number, also infinite (every
            prediction is a label) or NaN (none is).
        minimum: default 0.05 for ``sum`` and 0.001, the official value, for ``mean``.

    Returns:
        [K] float32 on the logits' device.

    Raises:
        ValueError: there are no batches, or their channels differ.

    >>> logits = torch.tensor([[2.0, 0.0], [3.0, 0.0], [9.0, 0.0]]).reshape(3, 2, 1, 1)
    >>> thresholds = entropy_thresholds([(logits, torch.zeros(3, 1, 1).long())])
    >>> [round(tau, 2) for tau in thresholds.tolist()]  # class 1 is never predicted
    [0.28, 0.05]
    >>> [round(score, 2) for score in prediction_entropy(logits).flatten().tolist()]
    [0.53, 0.28, 0.0]
    """
    if median not in ("exact", "official_histogram"):
        raise ValueError(f"median must be exact or official_histogram, got {median!r}")
    cells = _CELLS if median == "exact" else _OFFICIAL_BINS
    counts: Tensor | None = None
    for logits, target in batches:
        _check(logits, target)
        score, predicted = _score(logits, entropy, channels)
        known = logits.shape[1]
        if counts is None:
            counts = torch.zeros(known, cells, dtype=torch.int64, device=logits.device)
        elif len(counts) != known:
            raise ValueError(f"a batch has {known} channels, the ones before it {len(counts)}")
        background = target == 0
        scores = score[background].float()
        cell = _cell(scores) if median == "exact" else (scores * cells).long().clamp(max=cells - 1)
        counts += torch.bincount(predicted[background] * cells + cell, minlength=known * cells).view(known, cells)
    if counts is None:
        raise ValueError("thresholds need at least one batch of training pictures")
    lowest = MINIMUM[entropy] if minimum is None else minimum
    medians = _exact_medians(counts) if median == "exact" else _official_medians(counts)
    return torch.where(medians < lowest, lowest, medians)  # NaN stays NaN


@torch.no_grad()
def pseudo_labels(
    teacher_logits: Tensor,
    target: Tensor,
    thresholds: Tensor,
    ignore_index: int = 255,
    *,
    entropy: Entropy = "sum",
    channels: int | None = None,
    empty_share: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Targets in which certain predictions of the network before the round stand where the background was labelled.

    A pixel labelled 0 whose score (``prediction_entropy``) is below the threshold of the class that the teacher
    predicts becomes that class, which may be 0; another pixel labelled 0 is ignored. All other pixels stay as they are.
    Source: PLOP (arXiv 2011.11390, eq. 8-10) and its code.

    Args:
        teacher_logits: [B, K, H, W]; halves are computed in float32.
        target: [B, H, W] uint8 or int64.
        thresholds: [K], of ``entropy_thresholds`` with the same ``entropy`` and ``channels``.
        ignore_index: given to uncertain pixels.
        entropy, channels: as ``prediction_entropy`` has them.
        empty_share: the share of a picture without a pixel labelled 0. 0 is the official code's, where a picture's loss
            is multiplied by its share: a picture labelled throughout would not count.

    Returns:
        (targets [B, H, W] of the same type, share [B] float32 of the pixels labelled 0 whose prediction is certain).

    >>> logits = torch.tensor([[9.0, 0.0], [0.1, 0.0], [0.0, 9.0]]).T.reshape(1, 2, 1, 3)
    >>> target, share = pseudo_labels(logits, torch.zeros(1, 1, 3).long(), torch.tensor([0.5, 0.5]))
    >>> target.tolist(), [round(s, 3) for s in share.tolist()]
    ([[[0, 255, 1]]], [0.667])
    """
    _check(teacher_logits, target)
    if thresholds.shape != (teacher_logits.shape[1],):
        raise ValueError(f"thresholds are {list(thresholds.shape)}, the teacher has {teacher_logits.shape[1]} channels")
    score, predicted = _score(teacher_logits, entropy, channels)
    background = target == 0
    certain = background & (score < thresholds.to(score.device)[predicted])
    labelled = torch.where(certain, predicted.to(target.dtype), torch.full_like(target, ignore_index))
    pixels = background.flatten(1).sum(1)
    share = certain.flatten(1).sum(1) / pixels.clamp(min=1)
    return torch.where(background, labelled, target), torch.where(pixels > 0, share, empty_share)


@torch.no_grad()
def _score(logits: Tensor, entropy: Entropy, channels: int | None) -> tuple[Tensor, Tensor]:
    """(score, predicted class), [B, H, W] each."""
    known = logits.shape[1]
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    p = torch.softmax(wide, 1)
    if entropy == "sum":
        spread = torch.special.entr(p).sum(1)
        score = spread / math.log(known) if known > 1 else torch.zeros_like(spread)
    elif entropy == "mean":
        if channels is None or channels < max(known, 2):
            raise ValueError(f"entropy='mean' needs the number of channels after the round, at least {max(known, 2)}")
        spread = -(p * torch.log(p + 1e-8)).mean(1)
        score = spread / math.log(known + 1e-8) / math.log(channels) if known > 1 else torch.zeros_like(spread)
    else:
        raise ValueError(f"entropy must be sum or mean, got {entropy!r}")
    return score, p.argmax(1)


def _cell(score: Tensor) -> Tensor:
    bits = score.clamp(_SMALLEST, 1.0).view(torch.int32)
    return (bits >> _DROPPED).long() - _OFFSET


def _value(cell: Tensor) -> Tensor:
    return (cell + _OFFSET << _DROPPED).int().view(torch.float32)


def _exact_medians(counts: Tensor) -> Tensor:
    """[K]; 0 where nothing was counted."""
    running = counts.cumsum(1)
    total = running[:, -1:]
    middle = torch.cat([(total + 1) // 2, total // 2 + 1], 1)  # ranks from 1; the same twice if the number is odd
    cells = torch.searchsorted(running, middle).clamp(max=counts.shape[1] - 1)
    return torch.where(total[:, 0] > 0, _value(cells).mean(1), 0.0)


def _official_medians(counts: Tensor) -> Tensor:
    """[K]; 0 where nothing was counted. In float32, as its rule may divide by an empty bin."""
    medians = torch.zeros(len(counts))
    for row, bins in enumerate(counts.cpu()):
        if not bins.sum():
            continue
        half, running = bins.sum() / 2, 0.0
        for index in range(_OFFICIAL_BINS):
            border = index / _OFFICIAL_BINS
            count = bins[int(border * _OFFICIAL_BINS)]  # 0.29 * 100 is below 29: bins 29, 57 and 58 are never read
            if running <= half <= running + count:
                break
            running += border * _OFFICIAL_BINS
        medians[row] = border + (half - running) / count / _OFFICIAL_BINS
    return medians.to(counts.device)


def _check(logits: Tensor, target: Tensor) -> None:
    if logits.ndim != 4 or target.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(f"targets are {list(target.shape)}, the teacher's logits {list(logits.shape)}")
