"""Pooled distillation against tiles and windows walked cell by cell in float64, and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sapwood.functional import segmentation as seg

SHAPES = [(3, 4, 8), (2, 8, 8), (5, 9, 6)]


def maps(
    shapes: list[tuple[int, int, int]] = SHAPES, seed: int = 0, batch: int = 2
) -> tuple[list[Tensor], list[Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    ours = [torch.randn(batch, *shape, generator=rng, dtype=torch.float64).requires_grad_() for shape in shapes]
    return ours, [torch.randn(batch, *shape, generator=rng, dtype=torch.float64) for shape in shapes]


def embedding(
    values: np.ndarray, scales: tuple[int, ...], cells: Callable[[int, int, int], tuple[int, int]]
) -> list[float]:
    """Of one picture [c, h, w]: every tile's means over rows and over columns, of the squares."""
    found = []
    channels, height, width = values.shape
    for s in scales:
        rows, columns = cells(height, width, s)
        for i in range(s):
            for j in range(s):
                tile = values[:, i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
                for c in range(channels):
                    found += [sum(x * x for x in row) / columns for row in tile[c]]
                    found += [sum(x * x for x in column) / rows for column in tile[c].T]
    return found


def pod_by_hand(
    ours: list[Tensor], theirs: list[Tensor], scales: tuple[int, ...], factors: list[float], cells: Any
) -> float:
    total = 0.0
    for a, b, factor in zip(ours, theirs, factors, strict=True):
        norms = []
        for one, other in zip(a.detach().numpy(), b.numpy(), strict=True):
            gaps = np.array(embedding(one, scales, cells)) - np.array(embedding(other, scales, cells))
            norms.append(math.sqrt(sum(g * g for g in gaps)))
        total += factor * sum(norms) / len(norms)
    return total / len(ours)


def per_axis(height: int, width: int, scale: int) -> tuple[int, int]:
    return height // scale, width // scale


def width_only(height: int, width: int, scale: int) -> tuple[int, int]:
    return width // scale, width // scale


@pytest.mark.parametrize("scales", [(1,), (1, 2, 4), (3,)])
def test_local_pod_of_rectangles(scales: tuple[int, ...]) -> None:
    ours, theirs = maps()
    found = seg.local_pod(ours, theirs, scales, factors=[0.5, 2.0, 1.0])
    assert found.item() == pytest.approx(pod_by_hand(ours, theirs, scales, [0.5, 2.0, 1.0], per_axis), rel=1e-12)


def test_local_pod_official_tiles_leave_out_the_bottom_of_high_maps() -> None:
    ours, theirs = maps([(2, 9, 6)])
    found = seg.local_pod(ours, theirs, (1, 2), axis="width_only")
    assert found.item() == pytest.approx(pod_by_hand(ours, theirs, (1, 2), [1.0], width_only), rel=1e-12)
    found.backward()
    grad = ours[0].grad
    assert grad is not None
    assert torch.equal(grad[:, :, 6:], torch.zeros_like(grad[:, :, 6:]))
    assert (grad[:, :, :6] != 0).all()
    square = maps([(2, 6, 6)])
    assert torch.equal(seg.local_pod(*square, axis="width_only"), seg.local_pod(*square))


def test_local_pod_refuses_official_tiles_of_wide_maps() -> None:
    with pytest.raises(ValueError, match="at least as high as wide, got 4 × 8"):
        seg.local_pod(*maps([(1, 4, 8)]), axis="width_only")


def test_a_scale_larger_than_a_map_adds_nothing() -> None:
    ours, theirs = maps([(2, 3, 5)])
    assert torch.equal(seg.local_pod(ours, theirs, (1, 2, 4)), seg.local_pod(ours, theirs, (1, 2)))
    assert seg.local_pod(ours, theirs, (4,)).item() == 0


def test_pod_gradients() -> None:
    ours, theirs = maps([(2, 5, 7), (3, 4, 4)])
    assert torch.autograd.gradcheck(lambda *x: seg.local_pod(x, theirs, factors=[0.1, 2]), tuple(ours))


def cube_by_hand(ours: Tensor, theirs: Tensor, kernels: tuple[int, ...]) -> tuple[float, float]:
    """(mean over the kernels and pictures of the spatial norms, mean over the pictures of the channels' norms)."""
    difference = theirs.numpy() ** 2 - ours.detach().numpy() ** 2
    batch, channels, height, width = difference.shape
    spatial = []
    for k in kernels:
        for b in range(batch):
            total = 0.0
            for c in range(channels):
                for top in range(-(k // 2), height + k // 2 - k + 1):
                    for left in range(-(k // 2), width + k // 2 - k + 1):
                        rows = [i for i in range(top, top + k) if 0 <= i < height]
                        columns = [j for j in range(left, left + k) if 0 <= j < width]
                        total += (sum(difference[b, c, i, j] for i in rows for j in columns) / k**2) ** 2
            spatial.append(math.sqrt(total))
    over_channels = []
    for b in range(batch):
        windows = [difference[b, max(c - 1, 0) : c + 2].sum(0) / 3 for c in range(channels)]
        over_channels.append(math.sqrt(sum((window**2).sum() for window in windows)))
    return sum(spatial) / len(spatial), sum(over_channels) / batch


def test_pooled_cube() -> None:
    ours, theirs = maps([(3, 3, 5), (1, 4, 2), (2, 3, 3)])
    kernels = (1, 3, 4, 8)
    by_hand = [cube_by_hand(a, b, kernels) for a, b in zip(ours, theirs, strict=True)]
    found = seg.pooled_cube_distillation(
        ours, theirs, spatial_factors=[1.0, 2.0, 0.5], channel_factors=[3.0, 0.1], kernels=kernels
    )
    spatial = (by_hand[0][0] + 2 * by_hand[1][0] + 0.5 * by_hand[2][0]) / 3
    assert found.item() == pytest.approx(spatial + (3 * by_hand[0][1] + 0.1 * by_hand[1][1]) / 2, rel=1e-12)
    everywhere = seg.pooled_cube_distillation(ours, theirs, spatial_factors=0.0, channel_factors=2.0)
    assert everywhere.item() == pytest.approx(2 * sum(c for _, c in by_hand) / 3, rel=1e-12)


def test_pooled_cube_gradients() -> None:
    ours, theirs = maps([(2, 3, 4), (3, 2, 2)])
    assert torch.autograd.gradcheck(
        lambda *x: seg.pooled_cube_distillation(x, theirs, spatial_factors=0.5, channel_factors=[2.0]), tuple(ours)
    )


def local(ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
    return seg.local_pod(ours, theirs)


def cube(ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
    return seg.pooled_cube_distillation(ours, theirs, spatial_factors=1.0, channel_factors=1.0)


@pytest.mark.parametrize("loss", [local, cube])
def test_properties_of_both(loss: Any) -> None:
    ours, theirs = maps([(2, 4, 4)])
    same = loss([ours[0]], [ours[0].detach()])
    assert same.item() == 0
    same.backward()
    assert torch.equal(ours[0].grad, torch.zeros_like(ours[0]))  # type: ignore[arg-type]
    teacher = theirs[0].clone().requires_grad_()
    loss([ours[0]], [teacher]).backward()
    assert teacher.grad is None
    # Squares are compared: a map's sign does not count, twice the maps is four times the loss.
    assert loss([-ours[0]], theirs).item() == pytest.approx(loss(ours, theirs).item(), rel=1e-12)
    assert loss([2 * ours[0]], [2 * theirs[0]]).item() == pytest.approx(4 * loss(ours, theirs).item(), rel=1e-12)
    half = loss([ours[0].bfloat16()], [theirs[0].bfloat16()])
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(loss(ours, theirs).item(), rel=0.05)


@pytest.mark.parametrize("loss", [local, cube])
@given(batch=st.integers(1, 3), channels=st.integers(1, 3), height=st.integers(1, 6), width=st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_pictures_are_averaged(loss: Any, batch: int, channels: int, height: int, width: int) -> None:
    ours, theirs = maps([(channels, height, width)], seed=width, batch=batch)
    alone = [loss([ours[0][b : b + 1]], [theirs[0][b : b + 1]]).item() for b in range(batch)]
    assert loss(ours, theirs).item() == pytest.approx(sum(alone) / batch, rel=1e-9)


def test_new_channels_fold_into_the_background() -> None:
    logits = torch.arange(2 * 5 * 6.0, dtype=torch.float64).reshape(2, 5, 2, 3).requires_grad_()
    folded = seg.fold_new_channels(logits, 3)
    assert torch.equal(folded[:, 0], logits[:, 0] + logits[:, 3] + logits[:, 4])
    assert torch.equal(folded[:, 1:], logits[:, 1:3])
    assert torch.equal(seg.fold_new_channels(logits, 3, "trim"), logits[:, :3])
    assert torch.equal(seg.fold_new_channels(logits, 5), logits)
    folded.sum().backward()
    assert torch.equal(logits.grad, torch.ones_like(logits))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, b: seg.local_pod([], []), "0 maps and 0 of the teacher"),
        (lambda a, b: seg.local_pod(a, b[:1]), "3 maps and 1 of the teacher"),
        (lambda a, b: seg.local_pod(a, b[::-1]), r"map 0 is \[2, 3, 4, 8\], the teacher's \[2, 5, 9, 6\]"),
        (lambda a, b: seg.local_pod(a, b, factors=[1.0]), "1 factors for 3 maps"),
        (lambda a, b: seg.local_pod(a, b, (0,)), "at least 1, got 0"),
        (lambda a, b: seg.local_pod(a, b, axis="height"), "axis must be per_axis or width_only, got 'height'"),
        (lambda a, b: cube_of(a, b, spatial_factors=[1, 1]), "2 factors for 3 maps"),
        (lambda a, b: cube_of(a, b, channel_factors=[1] * 4), "4 factors for 3 maps"),
        (lambda a, b: cube_of(a, b, channel_width=2), "channel_width must be odd, got 2"),
        (lambda a, b: cube_of(a, b, kernels=()), "at least one kernel"),
        (lambda a, b: cube_of(a, b, kernels=(0,)), "at least 1, got 0"),
        (lambda a, b: seg.fold_new_channels(a[0], 4), "the teacher has 4 channels, the student 3"),
        (lambda a, b: seg.fold_new_channels(a[0], 2, "mean"), "rule must be sum or trim, got 'mean'"),
    ],
)
def test_what_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(*maps())


def cube_of(a: list[Tensor], b: list[Tensor], **changed: Any) -> Tensor:
    return seg.pooled_cube_distillation(a, b, **{"spatial_factors": 1.0, "channel_factors": 1.0, **changed})
