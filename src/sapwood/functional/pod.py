"""Distillation of pooled feature maps: PLOP's local POD and RCIL's pooled cube.

Both compare squared maps after pooling. Pooling is linear, so the difference of the squares is pooled, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Axis = Literal["per_axis", "width_only"]


def local_pod(
    features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    scales: Sequence[int] = (1, 2, 4),
    *,
    factors: Sequence[float] | float = 1.0,
    axis: Axis = "per_axis",
) -> Tensor:
    """Local pooled-outputs distillation: squared maps, averaged along strips of the tiles of a pyramid.

    For scale s a map is cut into s × s tiles of H // s by W // s cells (rows and columns that remain are left out).
    Of every tile the means over its width and the means over its height are taken; all of them together are the
    picture's embedding E. Returned is (1 / maps) sum_l factor_l mean_B ||E_teacher - E||_2: not divided by s^2 and not
    normalised, as in the official code. Its factor sqrt(channels / new channels) is not included. Source: PLOP
    (Douillard et al., CVPR 2021, arXiv 2011.11390, eq. 2-5) and its code.

    Args:
        features: [B, c, h, w] each, any sizes; halves are computed in float32. The logits' map, whose channels have
            grown, goes through ``fold_new_channels`` first.
        teacher_features: of the same shapes; no gradient flows into them.
        scales: tiles a side; a scale larger than a side of a map adds nothing there.
        factors: one a map, or one for all.
        axis: ``per_axis``; ``width_only`` takes tiles of W // s in both directions, as the official code does: of maps
            higher than wide the bottom rows are left out.

    Returns:
        A scalar; its gradient is zero, not NaN, where a picture's maps are the teacher's.

    Raises:
        ValueError: shapes differ; no maps; not one factor a map; ``width_only`` and a map wider than high (the official
            code averages over nothing there: NaN).

    >>> value = local_pod([torch.full((1, 1, 2, 2), 2.0)], [torch.zeros(1, 1, 2, 2)], scales=[1])
    >>> value.item()  # two strips over the width and two over the height, each 2^2: sqrt(4 * 4^2)
    8.0
    """
    weights = _weights(factors, len(features))
    terms = [
        weight * torch.linalg.vector_norm(_strips(difference, scales, axis), dim=1).mean()
        for weight, difference in zip(weights, _differences(features, teacher_features), strict=True)
    ]
    return torch.stack(terms).sum() / len(terms)


def pooled_cube_distillation(
    features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    *,
    spatial_factors: Sequence[float] | float,
    channel_factors: Sequence[float] | float,
    kernels: Sequence[int] = (4, 8, 12, 16, 20, 24),
    channel_width: int = 3,
) -> Tensor:
    """Pooled cube knowledge distillation: squared maps, averaged over windows of the plane and of the channels.

    With d = teacher^2 - student^2. Spatial: for every kernel k the average of d over k × k windows at stride 1, padded
    by k // 2 zeros that count; the mean over the kernels of mean_B ||.||_2. Channel: the average over
    ``channel_width`` neighbouring channels at stride 1, zeros at the ends that count; mean_B ||.||_2. Each term is
    multiplied by its map's factor and divided by the number of maps of its kind; all are added up. The official factor
    sqrt(channels / new channels) is not included. Source: RCIL (Zhang et al., CVPR 2022, arXiv 2203.05402, sec. 3.3)
    and its code.

    Args:
        features: [B, c, h, w] each, any sizes; halves are computed in float32. The logits' map goes through
            ``fold_new_channels`` first and, as the official code leaves it out of the channels' term, stands last.
        teacher_features: of the same shapes; no gradient flows into them.
        spatial_factors: one a map, or one for all.
        channel_factors: one for each of the first maps, the others have no term; or one for all.
        kernels: sides of the spatial windows.
        channel_width: odd.

    Returns:
        A scalar; its gradient is zero, not NaN, where a picture's maps are the teacher's.

    Raises:
        ValueError: shapes differ; no maps; more factors than maps, or too few spatial ones; an even ``channel_width``.

    >>> student, teacher = [torch.full((1, 1, 1, 1), 6.0)], [torch.zeros(1, 1, 1, 1)]
    >>> spatial = pooled_cube_distillation(student, teacher, spatial_factors=1, channel_factors=0, kernels=[2])
    >>> spatial.item()  # 36 / 4 in each of the four windows that hold the cell
    18.0
    >>> pooled_cube_distillation(student, teacher, spatial_factors=0, channel_factors=1).item()  # 36 / 3
    12.0
    """
    if channel_width < 1 or channel_width % 2 == 0:
        raise ValueError(f"channel_width must be odd, got {channel_width}")
    if not kernels:
        raise ValueError("pooled cube distillation needs at least one kernel")
    spatial = _weights(spatial_factors, len(features))
    over_channels = _weights(channel_factors, len(features), shorter=True)
    differences = _differences(features, teacher_features)
    total = differences[0].new_zeros(())
    for weight, difference in zip(spatial, differences, strict=True):
        total = total + weight / len(spatial) * _WindowNorm.apply(difference, tuple(kernels))
    for weight, difference in zip(over_channels, differences, strict=False):
        total = total + weight / len(over_channels) * _norm(_pool_channels(difference, channel_width))
    return total


def fold_new_channels(logits: Tensor, old_channels: int, rule: Literal["sum", "trim"] = "sum") -> Tensor:
    """A map of logits with as many channels as the teacher's, for ``local_pod`` and ``pooled_cube_distillation``.

    Args:
        logits: [B, C, h, w], channel 0 the background, the new channels last.
        old_channels: K, how many the teacher has.
        rule: ``sum`` adds the new channels' logits to the background's (PLOP and RCIL: the logits themselves, not their
            exponentials); ``trim`` leaves them out (PLOP's other option).

    Returns:
        [B, K, h, w].

    >>> fold_new_channels(torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1, 1), 2).flatten().tolist()
    [8.0, 2.0]
    """
    if not 1 <= old_channels <= logits.shape[1]:
        raise ValueError(f"the teacher has {old_channels} channels, the student {logits.shape[1]}")
    if rule not in ("sum", "trim"):
        raise ValueError(f"rule must be sum or trim, got {rule!r}")
    if rule == "trim":
        return logits[:, :old_channels]
    background = logits[:, :1] + logits[:, old_channels:].sum(1, keepdim=True)
    return torch.cat([background, logits[:, 1:old_channels]], 1)


def _differences(features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> list[Tensor]:
    """teacher^2 - student^2 of every map, in float32 at least."""
    if not features or len(features) != len(teacher_features):
        raise ValueError(f"{len(features)} maps and {len(teacher_features)} of the teacher: give as many, at least one")
    found = []
    for index, (ours, theirs) in enumerate(zip(features, teacher_features, strict=True)):
        if ours.ndim != 4 or ours.shape != theirs.shape:
            raise ValueError(
                f"map {index} is {list(ours.shape)}, the teacher's {list(theirs.shape)}: both must be [B, c, h, w]"
            )
        wide = torch.promote_types(ours.dtype, torch.float32)
        difference = theirs.detach().to(wide).square() - ours.to(wide).square()
        # A transformer's maps are transposed tokens: what follows is twice as slow on such strides.
        found.append(difference.contiguous())
    return found


def _strips(values: Tensor, scales: Sequence[int], axis: Axis) -> Tensor:
    """[B, c, h, w] -> [B, D]: the means of all tiles over their width and over their height."""
    batch, channels, height, width = values.shape
    if axis not in ("per_axis", "width_only"):
        raise ValueError(f"axis must be per_axis or width_only, got {axis!r}")
    if axis == "width_only" and height < width:
        raise ValueError(f"axis='width_only' needs maps at least as high as wide, got {height} × {width}")
    found = [values.new_zeros(batch, 0)]
    for scale in scales:
        if scale < 1:
            raise ValueError(f"scales count the tiles a side: at least 1, got {scale}")
        columns = width // scale
        rows = columns if axis == "width_only" else height // scale
        if not rows or not columns:
            continue
        tiles = values[:, :, : scale * rows, : scale * columns].reshape(batch, channels, scale, rows, scale, columns)
        found += [tiles.mean(5).flatten(1), tiles.mean(3).flatten(1)]
    return torch.cat(found, 1)


class _WindowNorm(torch.autograd.Function):
    """Mean over kernels and pictures of ||A v B^T||, A and B the averages over windows down and across a map v.

    ||A v B^T||^2 = <v, A^T A v B^T B>, and that second factor, divided by the norm, is the gradient: one pass of banded
    products gives both. Windows cost k^2 reads a cell otherwise, and their backward pass as much again.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, kernels: tuple[int, ...]) -> Tensor:
        total, slope = values.new_zeros(()), torch.zeros_like(values)
        for kernel in kernels:
            if kernel < 1:
                raise ValueError(f"kernels are sides of windows: at least 1, got {kernel}")
            down, across = (_windows(side, kernel, values) for side in values.shape[2:])
            turned = (down.T @ down) @ values @ (across.T @ across)
            norms = (values * turned).flatten(1).sum(1).clamp(min=0).sqrt()
            total += norms.mean()
            # Where a norm is zero the gradient is taken as zero.
            slope += turned / norms.where(norms > 0, torch.inf).reshape(-1, 1, 1, 1)
        ctx.save_for_backward(slope / (len(kernels) * len(values)))
        return total / len(kernels)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return gradients[0] * slope, None


def _pool_channels(values: Tensor, width: int) -> Tensor:
    padded = F.pad(values, (0, 0, 0, 0, width // 2, width // 2))
    return sum((padded[:, i : i + values.shape[1]] for i in range(1, width)), padded[:, : values.shape[1]]) / width


def _windows(side: int, kernel: int, like: Tensor) -> Tensor:
    """[windows, side]: row i holds 1 / kernel where window i covers a cell."""
    padding = kernel // 2
    starts = torch.arange(side + 2 * padding - kernel + 1, device=like.device).unsqueeze(1) - padding
    cells = torch.arange(side, device=like.device)
    return ((cells >= starts) & (cells < starts + kernel)).to(like.dtype) / kernel


def _norm(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(values.flatten(1), dim=1).mean()


def _weights(factors: Sequence[float] | float, maps: int, *, shorter: bool = False) -> list[float]:
    if isinstance(factors, (int, float)):
        return [float(factors)] * maps
    if len(factors) > maps or (len(factors) < maps and not shorter):
        raise ValueError(f"{len(factors)} factors for {maps} maps")
    return [float(factor) for factor in factors]
