"""Losses and measures of class-incremental semantic segmentation.

Channel 0 is the background, the others stand in the order in which their classes arrived. A round annotates some
classes only: pixels of all others, old or still to come, are labelled background (the background shift).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from sapwood.functional.branches import Branch, branch_weights, fold_batch_norm, merge_parallel_branches
from sapwood.functional.confusion import confusion_matrix, iou_from_confusion, mean_iou
from sapwood.functional.fused import PixelLosses
from sapwood.functional.pod import fold_new_channels, local_pod, pooled_cube_distillation
from sapwood.functional.pseudo import entropy_thresholds, prediction_entropy, pseudo_labels
from sapwood.functional.transfer import (
    attention_transfer,
    decomposed_distillation,
    labels_on_cells,
    sigmoid_distillation,
)

__all__ = [
    "Branch",
    "attention_transfer",
    "background_initialisation",
    "branch_weights",
    "confusion_matrix",
    "decomposed_distillation",
    "distillation",
    "entropy_thresholds",
    "fold_batch_norm",
    "fold_new_channels",
    "iou_from_confusion",
    "labels_on_cells",
    "local_pod",
    "mean_iou",
    "merge_parallel_branches",
    "pixel_cross_entropy",
    "pixel_losses",
    "pooled_cube_distillation",
    "prediction_entropy",
    "pseudo_labels",
    "sigmoid_distillation",
    "unbiased_cross_entropy",
    "unbiased_distillation",
]

Reduction = Literal["mean", "mean_all", "none"]


def pixel_cross_entropy(
    logits: Tensor, target: Tensor, ignore_index: int = 255, reduction: Reduction = "mean"
) -> Tensor:
    """Cross entropy of every pixel over all channels: ``unbiased_cross_entropy`` whose only old channel is 0.

    >>> round(pixel_cross_entropy(torch.zeros(1, 4, 1, 2), torch.tensor([[[1, 255]]])).exp().item(), 4)
    4.0
    """
    return unbiased_cross_entropy(logits, target, 1, ignore_index, reduction)


def unbiased_cross_entropy(
    logits: Tensor,
    target: Tensor,
    old_classes: int | Tensor,
    ignore_index: int = 255,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross entropy that reads "background" as "background or an old class".

    With p = softmax(logits) and O the old channels: -log sum_{c in O} p_c where the target lies in O, else
    -log p_target; 0 where it is ignored. Where O = {0} it is the plain cross entropy. Source: MiB (Cermelli et al.,
    CVPR 2020, arXiv 2002.00718) and its code.

    Args:
        logits: [B, C, H, W]; halves are computed in float32.
        target: [B, H, W] uint8 or int64, channels or ``ignore_index``.
        old_classes: how many of the first channels are old, the background included; or a mask [C] bool of the channels
            not annotated this round, the background among them.
        ignore_index: pixels without loss; their gradient is exactly zero.
        reduction: ``mean`` over the pixels not ignored (0 if there are none); ``mean_all``, the sum divided by all
            pixels, as the official code does; ``none``.

    Returns:
        Nats a pixel: a scalar, or [B, H, W].

    Raises:
        ValueError: shapes do not fit; a target is no channel (looked at on the CPU only; on a GPU the kernel asserts).

    >>> logits = torch.tensor([1.0, 2.0, 3.0]).log().reshape(1, 3, 1, 1)
    >>> round(unbiased_cross_entropy(logits, torch.tensor([[[0]]]), old_classes=2).exp().item(), 4)  # 1 / (1/6 + 2/6)
    2.0
    """
    entropy, _ = _losses(logits, target, None, old_classes, 1.0, True, ignore_index)
    assert entropy is not None
    return _reduce(entropy, reduction, target.long() != ignore_index)


def unbiased_distillation(
    logits: Tensor, teacher_logits: Tensor, alpha: float = 1.0, reduction: Reduction = "mean"
) -> Tensor:
    """Distillation that compares the teacher's background with the student's "background or a new class" (MiB).

    -(1/K) sum_{c < K} q_c l_c with K = C_old, q = softmax(alpha * teacher), p = softmax(logits),
    l_0 = log(p_0 + sum_{c >= K} p_c) and l_c = log p_c. The factor 1/K is the official code's; a sum over the classes
    wants a strength divided by K.

    Args:
        logits: [B, C, H, W] of the student, C >= C_old; halves are computed in float32.
        teacher_logits: [B, C_old, H, W]; no gradient flows into it.
        alpha: multiplies the teacher's logits, not the student's.
        reduction: ``mean`` or ``mean_all``, over all pixels (there is no target, hence none is ignored); ``none``.

    Returns:
        Nats a pixel and old channel: a scalar, or [B, H, W].

    >>> student = torch.tensor([1.0, 2.0, 1.0]).log().reshape(1, 3, 1, 1)
    >>> teacher = torch.tensor([2.0, 2.0]).log().reshape(1, 2, 1, 1)  # its background has split up
    >>> round((2 * unbiased_distillation(student, teacher)).exp().item(), 4)
    2.0
    """
    _, distilled = _losses(logits, None, teacher_logits, 1, alpha, True, 0)
    assert distilled is not None
    return _reduce(distilled, reduction, None)


def distillation(logits: Tensor, teacher_logits: Tensor, alpha: float = 1.0) -> Tensor:
    """Distillation of the old channels alone, as learning without forgetting does it for pixels.

    -(1/K) sum_{c < K} softmax(alpha * teacher)_c log softmax(logits[:, :K])_c with K = C_old, mean over all pixels; the
    student's new channels are left out before the softmax (MiB's code, ``LwF``). Arguments as in
    ``unbiased_distillation``.

    >>> student = torch.tensor([1.0, 1.0, 9.0]).log().reshape(1, 3, 1, 1)
    >>> round((2 * distillation(student, torch.zeros(1, 2, 1, 1))).exp().item(), 4)
    2.0
    """
    _, distilled = _losses(logits, None, teacher_logits, 1, alpha, False, 0)
    assert distilled is not None
    return distilled.mean()


def pixel_losses(
    logits: Tensor,
    target: Tensor,
    teacher_logits: Tensor,
    *,
    old_classes: int | Tensor = 1,
    alpha: float = 1.0,
    unbiased: bool = True,
    ignore_index: int = 255,
    reduction: Reduction = "mean",
) -> tuple[Tensor, Tensor]:
    """Cross entropy and distillation at once: one pass over the logits, and one gradient as large as they are.

    The same numbers as (``unbiased_cross_entropy``, ``unbiased_distillation``), whose arguments it takes, or with
    ``distillation`` in the second place if not ``unbiased``. Distillation is the mean over all pixels, ignored ones
    included, unless ``reduction`` is ``none``.
    """
    entropy, distilled = _losses(logits, target, teacher_logits, old_classes, alpha, unbiased, ignore_index)
    assert entropy is not None
    assert distilled is not None
    return _reduce(entropy, reduction, target.long() != ignore_index), _reduce(distilled, reduction, None)


def background_initialisation(old_weight: Tensor, old_bias: Tensor, new_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of new classes that share the background's probability evenly with it (MiB).

    New weights are the background's; new biases and the background's own become b_0 - log(N + 1), so that
    exp(background) is spread over N + 1 channels and every probability of the old model is kept.

    Args:
        old_weight: [C_old, d], row 0 the background's.
        old_bias: [C_old].
        new_classes: N >= 0.

    Returns:
        (new_weight [N, d], new_bias [N], lowered_background_bias, a scalar).

    >>> weight, bias, lowered = background_initialisation(torch.tensor([[1.0, 2.0]]), torch.zeros(1), 3)
    >>> weight.shape, (4 * lowered.exp()).item()
    (torch.Size([3, 2]), 1.0)
    """
    if new_classes < 0:
        raise ValueError(f"a head grows by 0 or more classes, got {new_classes}")
    if not len(old_weight) or len(old_weight) != len(old_bias):
        raise ValueError(f"{len(old_weight)} rows of weights and {len(old_bias)} biases: no background to start from")
    lowered = old_bias[0].detach() - math.log(new_classes + 1)
    return old_weight[:1].detach().repeat(new_classes, 1), lowered.repeat(new_classes), lowered


def _losses(
    logits: Tensor,
    target: Tensor | None,
    teacher: Tensor | None,
    old_classes: int | Tensor,
    alpha: float,
    unbiased: bool,
    ignore_index: int,
) -> tuple[Tensor | None, Tensor | None]:
    if logits.ndim != 4:
        raise ValueError(f"logits must be [B, C, H, W], got {list(logits.shape)}")
    batch, channels, height, width = logits.shape
    if target is not None and target.shape != (batch, height, width):
        raise ValueError(f"targets are {list(target.shape)}, logits {list(logits.shape)}: sizes must agree")
    if teacher is not None:
        if teacher.ndim != 4 or (teacher.shape[0], *teacher.shape[2:]) != (batch, height, width):
            raise ValueError(f"the teacher's logits are {list(teacher.shape)}, the student's {list(logits.shape)}")
        if not 0 < teacher.shape[1] <= channels:
            raise ValueError(f"the teacher has {teacher.shape[1]} channels, the student {channels}")
        teacher = teacher.detach()
    folded = _old_channels(old_classes, channels)
    entropy, distilled = PixelLosses.apply(logits, target, teacher, folded, ignore_index, alpha, unbiased)
    return entropy, distilled


def _old_channels(old_classes: int | Tensor, channels: int) -> Tensor:
    if not isinstance(old_classes, Tensor):
        if not 1 <= old_classes <= channels:
            raise ValueError(f"old_classes counts the background: 1..{channels}, got {old_classes}")
        return torch.arange(channels) < old_classes
    if old_classes.dtype != torch.bool or old_classes.shape != (channels,):
        raise ValueError(
            f"old_classes must be an int or bool [{channels}], got {old_classes.dtype} {list(old_classes.shape)}"
        )
    if not old_classes[0]:
        raise ValueError("the background, channel 0, is always among the old channels")
    return old_classes


def _reduce(values: Tensor, reduction: Reduction, valid: Tensor | None) -> Tensor:
    if reduction == "none":
        return values
    if reduction == "mean_all" or (reduction == "mean" and valid is None):
        return values.mean()
    if reduction == "mean" and valid is not None:
        return values.sum() / valid.sum().clamp(min=1)
    raise ValueError(f"reduction must be mean, mean_all or none, got {reduction!r}")
