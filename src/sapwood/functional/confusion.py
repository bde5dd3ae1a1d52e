"""Counts of truth against prediction, of pictures or pixels, and intersection over union from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor


def confusion_counts(targets: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Pictures by truth (rows) and prediction (columns), both [n] and on the CPU: counts [K, K] int32.

    Raises:
        ValueError, IndexError: a class is none of 0..K-1.

    >>> confusion_counts(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    if len(targets) and min(int(targets.min()), int(predicted.min())) < 0:
        raise ValueError("classes are counted from 0; one is negative")
    counts = np.zeros((classes, classes), np.int32)
    np.add.at(counts, (targets.numpy(), predicted.numpy()), 1)
    return torch.from_numpy(counts)


def row_sums(confusion: Tensor) -> Tensor:
    """Pictures of each class [K], int64; torch's own sum would first make a copy of twice the size.

    >>> row_sums(torch.tensor([[6, 2], [0, 4]])).tolist()
    [8, 4]
    """
    return torch.from_numpy(confusion.numpy().sum(1, dtype=np.int64))


def confusion_matrix(prediction: Tensor, target: Tensor, classes: int, ignore_index: int = 255) -> Tensor:
    """Pixels by truth (rows) and prediction (columns); matrices of several pictures add up.

    Counted are pixels whose target is one of the channels 0..K-1 and not ``ignore_index``: classes not learnt yet drop
    out, as in the field's codes.

    Args:
        prediction: channels 0..K-1, integer, any shape.
        target: of the same shape.
        classes: K, the background included.

    Returns:
        [K, K] int64 on the target's device.

    Raises:
        ValueError: shapes differ; a counted pixel is predicted to be none of the channels.

    >>> confusion_matrix(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 255]), classes=2).tolist()
    [[1, 1], [0, 1]]
    """
    if prediction.shape != target.shape:
        raise ValueError(f"predictions are {list(prediction.shape)}, targets {list(target.shape)}: sizes must agree")
    truth = target.flatten().long()
    counted = (truth >= 0) & (truth < classes) & (truth != ignore_index)
    truth, found = truth[counted], prediction.flatten()[counted].long()
    if len(found) and not 0 <= int(found.min()) <= int(found.max()) < classes:
        raise ValueError(f"predictions hold {int(found.min())}..{int(found.max())}, known are 0..{classes - 1}")
    return torch.bincount(truth * classes + found, minlength=classes * classes).reshape(classes, classes)


def iou_from_confusion(confusion: Tensor) -> Tensor:
    """TP / (truth + predicted - TP) of every channel.

    Args:
        confusion: [K, K], rows truth, columns prediction.

    Returns:
        [K] float64, fractions; NaN where a channel has neither a true nor a predicted pixel.

    >>> iou_from_confusion(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]])).tolist()
    [0.75, 0.8, nan]
    """
    counts = confusion.double()
    right = counts.diagonal()
    return right / (counts.sum(1) + counts.sum(0) - right)


def mean_iou(
    confusion: Tensor,
    *,
    background: Literal["include", "exclude"] = "include",
    absent: Literal["skip", "zero"] = "skip",
    classes: Sequence[int] | None = None,
) -> float:
    """Mean of the channels' IoU; codes differ in what they average over, so it is said here.

    Args:
        confusion: [K, K], rows truth, columns prediction, over all pixels of all pictures.
        background: ``exclude`` leaves channel 0 out (MiB's tables); PLOP, SSUL, RCIL and DKD include it. It stays in
            the matrix either way: pixels taken for background are missing elsewhere.
        absent: channels without a true pixel: ``skip`` leaves them out, also where some were predicted (MiB, PLOP);
            ``zero`` counts them as 0 (SSUL, DKD).
        classes: channels to average over, old or new ones for instance; None: all.

    Returns:
        A fraction; NaN if no channel is left.

    >>> counts = torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    >>> mean_iou(counts), mean_iou(counts, background="exclude"), mean_iou(counts, absent="zero", classes=[1, 2])
    (0.775, 0.8, 0.4)
    """
    if background not in ("include", "exclude"):
        raise ValueError(f"background must be include or exclude, got {background!r}")
    if absent not in ("skip", "zero"):
        raise ValueError(f"absent must be skip or zero, got {absent!r}")
    chosen = range(len(confusion)) if classes is None else classes
    truth, values = confusion.sum(1).tolist(), iou_from_confusion(confusion).tolist()
    kept = [c for c in chosen if (background == "include" or c != 0) and (absent == "zero" or truth[c])]
    shares = [values[c] if truth[c] else 0.0 for c in kept]
    return sum(shares) / len(shares) if shares else float("nan")
