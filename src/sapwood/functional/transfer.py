"""What a network passes on besides its logits: attention by class (SATS), parts of the class scores (DKD)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

HeadLayout = Literal["permuted", "official_reshape"]


def attention_transfer(
    attention: Sequence[Tensor],
    teacher_attention: Sequence[Tensor],
    labels: Sequence[Tensor],
    *,
    head_layout: HeadLayout = "permuted",
    ignore_index: int = 255,
) -> Tensor:
    """Class-specific transfer of self-attention: where the cells of a class look, on average.

    For every picture and every class c that is present, 0 and ``ignore_index`` apart: the attention rows of c's cells
    are averaged, [heads, S]; d_c is the mean over the heads of the L2 distance between the student's and the teacher's
    average. A picture's value is the mean of its d_c (0 without any class), a map's the mean over the pictures, the
    loss the mean over the maps. Source: SATS (Qiu et al., Pattern Recognition 2023, arXiv 2203.07667) and its code.

    Args:
        attention: softmax maps [B, heads, L, S], L cells that ask, row by row; S keys; sizes may differ between maps.
        teacher_attention: of the same shapes; no gradient flows into them.
        labels: [B, h, w] for each map, h * w = L (``labels_on_cells``), pseudo-labels included.
        head_layout: ``permuted``; ``official_reshape`` reads [B, heads, L, S] as if it were [B, L, heads, S], as the
            official code does: with more than one head it mixes up rows and heads.
        ignore_index: cells that belong to no class.

    Returns:
        A scalar; its gradient is zero, not NaN, where an average equals the teacher's.

    Raises:
        ValueError: shapes do not fit; no maps.

    >>> ours = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).reshape(1, 1, 2, 2)
    >>> labels = [torch.tensor([[[0, 7]]])]  # cells 0 and 1
    >>> round(attention_transfer([ours], [1 - ours], labels).item() ** 2, 4)
    2.0
    """
    if not attention or not len(attention) == len(teacher_attention) == len(labels):
        raise ValueError(
            f"{len(attention)} attention maps, {len(teacher_attention)} of the teacher and labels for {len(labels)}: "
            "give as many of each, at least one"
        )
    if head_layout not in ("permuted", "official_reshape"):
        raise ValueError(f"head_layout must be permuted or official_reshape, got {head_layout!r}")
    triples = zip(attention, teacher_attention, labels, strict=True)
    return torch.stack([_transfer(*triple, head_layout, ignore_index) for triple in triples]).mean()


def labels_on_cells(target: Tensor, cells: int) -> Tensor:
    """Labels of an attention map's cells: the target's nearest pixels, on the grid of L cells closest to its shape.

    Args:
        target: [B, H, W] uint8 or int64.
        cells: L = h * w; h / w is chosen as close to H / W as L allows.

    Returns:
        [B, h, w] of the same type. Cell i takes pixel floor(i * H / h), as ``interpolate(mode="nearest")`` does.

    >>> labels_on_cells(torch.arange(32).reshape(1, 4, 8), 2).tolist()
    [[[0, 4]]]
    """
    height, width = target.shape[1:]
    sides = [h for h in range(1, cells + 1) if cells % h == 0]
    if not sides:
        raise ValueError(f"an attention map has at least one cell, got {cells}")
    rows = min(sides, key=lambda h: abs(math.log(h * h / cells * width / height)))
    columns = cells // rows
    down = torch.arange(rows, device=target.device) * height // rows
    across = torch.arange(columns, device=target.device) * width // columns
    return target[:, down][:, :, across]


def decomposed_distillation(
    parts: tuple[Tensor, Tensor], teacher_parts: tuple[Tensor, Tensor], first: int = 1
) -> tuple[Tensor, Tensor]:
    """Distillation of the positive and the negative part of every old class's score.

    A class score w . f is the sum of z+ = max(w, 0) . f and z- = min(w, 0) . f; each part is distilled by
    ``sigmoid_distillation``, so that not only their sum is kept. Source: DKD (Baek et al., NeurIPS 2022,
    arXiv 2210.05941, eq. 7-9) and its code.

    Args:
        parts: (z+, z-) of the student, [B, C, h, w] each, not upsampled and without bias.
        teacher_parts: (z+, z-) of the teacher, [B, K, h, w], K <= C; no gradient flows into them.
        first: the first channel that counts; channel 0 is no class there.

    Returns:
        (positive, negative), two scalars.

    >>> zero = torch.zeros(1, 3, 1, 1)  # a probability of 1/2 for two classes: 2 log 2
    >>> [round(term.exp().item(), 4) for term in decomposed_distillation((zero, zero), (zero, zero))]
    [4.0, 4.0]
    """
    positive, negative = (sigmoid_distillation(*pair, first) for pair in zip(parts, teacher_parts, strict=True))
    return positive, negative


def sigmoid_distillation(logits: Tensor, teacher_logits: Tensor, first: int = 1) -> Tensor:
    """Binary cross entropy of the old channels against the teacher's probabilities.

    sum_{first <= c < K} mean_{B,h,w} BCE(logits_c, sigmoid(teacher_c)). Source: as ``decomposed_distillation``.

    Args:
        logits: [B, C, h, w]; halves are computed in float32.
        teacher_logits: [B, K, h, w], K <= C; no gradient flows into it.
        first: the first channel that counts.

    Returns:
        A scalar, nats; 0 if no channel counts.

    >>> sigmoid_distillation(torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)).exp()
    tensor(2.)
    """
    if logits.ndim != 4 or teacher_logits.ndim != 4 or logits[:, :0].shape != teacher_logits[:, :0].shape:
        raise ValueError(f"the teacher's logits are {list(teacher_logits.shape)}, the student's {list(logits.shape)}")
    known = teacher_logits.shape[1]
    if not 0 <= first <= known <= logits.shape[1]:
        raise ValueError(f"channels {first}..{known - 1} of the teacher, the student has {logits.shape[1]}")
    wide = torch.promote_types(logits.dtype, torch.float32)
    ours, theirs = logits[:, first:known].to(wide), teacher_logits[:, first:].detach().to(wide)
    if not ours.shape[1]:
        return ours.sum()
    return F.binary_cross_entropy_with_logits(ours, theirs.sigmoid()) * ours.shape[1]


def _transfer(ours: Tensor, theirs: Tensor, labels: Tensor, head_layout: HeadLayout, ignore_index: int) -> Tensor:
    if ours.ndim != 4 or ours.shape != theirs.shape:
        raise ValueError(
            f"attention is {list(ours.shape)}, the teacher's {list(theirs.shape)}: both must be [B, heads, L, S]"
        )
    batch, heads, cells, keys = ours.shape
    if labels.ndim != 3 or len(labels) != batch or labels[0].numel() != cells:
        raise ValueError(f"labels are {list(labels.shape)} for {cells} cells of {batch} pictures")
    wide = torch.promote_types(ours.dtype, torch.float32)
    # Averages are linear: the difference is averaged, once.
    difference = ours.to(wide) - theirs.detach().to(wide)
    if head_layout == "official_reshape":
        difference = difference.reshape(batch, cells, heads, keys).transpose(1, 2)
    labels = labels.flatten(1).long()
    classes = labels.unique()
    classes = classes[(classes != 0) & (classes != ignore_index)]
    members = labels[:, None] == classes[:, None]  # [B, classes, L]
    count = members.sum(2)
    shares = members.to(wide) / count.clamp(min=1).unsqueeze(2)
    means = shares.unsqueeze(1) @ difference  # [B, heads, classes, S]
    distance = torch.linalg.vector_norm(means, dim=3).mean(1)
    present = (count > 0).sum(1)
    return (distance.sum(1) / present.clamp(min=1)).mean()
