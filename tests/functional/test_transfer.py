"""Attention by class and parts of scores against cells walked one by one in float64, and finite differences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sapwood.functional import segmentation as seg

VOID = 255


def attention(batch: int = 2, heads: int = 3, cells: int = 6, keys: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    drawn = torch.randn(2, batch, heads, cells, keys, generator=rng, dtype=torch.float64).softmax(-1)
    return drawn[0].requires_grad_(), drawn[1]


LABELS = torch.tensor([[[0, 7, 7], [255, 2, 7]], [[0, 0, 255], [0, 0, 0]]])  # 7 and 2 in one picture, none in the other


def transfer_by_hand(ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray) -> float:
    """Of [B, heads, L, S] and [B, L]."""
    pictures = []
    for b in range(len(ours)):
        classes = sorted(set(labels[b].tolist()) - {0, VOID})
        distances = []
        for c in classes:
            cells = [i for i in range(labels.shape[1]) if labels[b, i] == c]
            heads = []
            for h in range(ours.shape[1]):
                one = sum(ours[b, h, i] for i in cells) / len(cells)
                other = sum(theirs[b, h, i] for i in cells) / len(cells)
                heads.append(math.sqrt(((one - other) ** 2).sum()))
            distances.append(sum(heads) / len(heads))
        pictures.append(sum(distances) / len(distances) if distances else 0.0)
    return sum(pictures) / len(pictures)


def test_attention_transfer() -> None:
    first, second = attention(), attention(heads=1, cells=2, keys=5, seed=1)
    coarse = torch.tensor([[[7, 0]], [[3, 3]]])
    expected = [
        transfer_by_hand(ours.detach().numpy(), theirs.numpy(), labels.flatten(1).numpy())
        for (ours, theirs), labels in ((first, LABELS), (second, coarse))
    ]
    assert all(e > 0 for e in expected)
    maps = list(zip(first, second, strict=True))
    found = seg.attention_transfer(maps[0], maps[1], [LABELS, coarse])
    assert found.item() == pytest.approx(sum(expected) / 2, rel=1e-12)
    short = seg.attention_transfer(maps[0], maps[1], [LABELS.to(torch.uint8), coarse.to(torch.uint8)])
    assert torch.equal(found, short)


def test_attention_gradients() -> None:
    ours, theirs = attention()
    assert torch.autograd.gradcheck(lambda x: seg.attention_transfer([x], [theirs], [LABELS]), (ours,))
    seg.attention_transfer([ours], [theirs], [LABELS]).backward()
    used = torch.isin(LABELS, torch.tensor([2, 7])).flatten(1)
    moved = (ours.grad != 0).any(3).any(1)  # type: ignore[union-attr]
    assert torch.equal(moved, used)


def test_official_layout_mixes_heads_and_rows() -> None:
    ours, theirs = attention()
    found = seg.attention_transfer([ours], [theirs], [LABELS], head_layout="official_reshape")
    # The buffer [heads, L, S] read in the order [L, heads, S].
    scrambled = [np.moveaxis(a.detach().numpy().reshape(2, -1).reshape(2, 6, 3, 4), 2, 1) for a in (ours, theirs)]
    assert found.item() == pytest.approx(transfer_by_hand(*scrambled, LABELS.flatten(1).numpy()), rel=1e-12)
    assert found.item() != pytest.approx(seg.attention_transfer([ours], [theirs], [LABELS]).item(), rel=1e-3)
    alone = attention(heads=1)
    layouts: tuple[Any, ...] = ("permuted", "official_reshape")
    values = [seg.attention_transfer([alone[0]], [alone[1]], [LABELS], head_layout=layout) for layout in layouts]
    assert torch.equal(*values)


def test_attention_that_has_nothing_to_say() -> None:
    ours, theirs = attention()
    nothing = torch.full((2, 2, 3), VOID)
    nothing[0, 0] = 0
    for teacher, labels in ((theirs, nothing), (ours.detach(), LABELS)):
        ours.grad = None
        loss = seg.attention_transfer([ours], [teacher], [labels])
        assert loss.item() == 0
        loss.backward()
        assert torch.equal(ours.grad, torch.zeros_like(ours))  # type: ignore[arg-type]
    pupil, teacher = attention()
    teacher.requires_grad_()
    seg.attention_transfer([pupil], [teacher], [LABELS]).backward()
    assert teacher.grad is None
    low = seg.attention_transfer([ours.bfloat16()], [theirs.bfloat16()], [LABELS])
    assert low.dtype == torch.float32


@given(height=st.integers(1, 5), width=st.integers(1, 5), patch=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_labels_on_cells(height: int, width: int, patch: int) -> None:
    target = torch.arange(2 * height * width * patch**2).reshape(2, height * patch, width * patch)
    found = seg.labels_on_cells(target, height * width)
    assert found.shape == (2, height, width)
    resized = F.interpolate(target[:, None].double(), (height, width), mode="nearest")[:, 0].long()
    assert torch.equal(found, resized)


def test_labels_of_a_grid_that_is_rounded_up() -> None:
    # 168 × 224 at stride 32 with padding: 6 × 7 cells.
    assert seg.labels_on_cells(torch.zeros(1, 168, 224, dtype=torch.uint8), 42).shape == (1, 6, 7)


def binary_by_hand(logits: np.ndarray, teacher: np.ndarray, first: int) -> float:
    total = 0.0
    for c in range(first, teacher.shape[1]):
        pixels = []
        for b, i, j in np.ndindex(logits.shape[0], *logits.shape[2:]):
            q, p = (1 / (1 + math.exp(-values[b, c, i, j])) for values in (teacher, logits))
            pixels.append(-q * math.log(p) - (1 - q) * math.log(1 - p))
        total += sum(pixels) / len(pixels)
    return total


@pytest.mark.parametrize("first", [0, 1, 3])
def test_sigmoid_distillation(first: int) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 2, 3, generator=rng, dtype=torch.float64).requires_grad_()
    teacher = torch.randn(2, 3, 2, 3, generator=rng, dtype=torch.float64)
    found = seg.sigmoid_distillation(logits, teacher, first)
    by_hand = binary_by_hand(logits.detach().numpy(), teacher.numpy(), first)
    assert found.item() == pytest.approx(by_hand, rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: seg.sigmoid_distillation(x, teacher, first), (logits,))
    found.backward()
    grad = logits.grad
    assert grad is not None
    assert torch.equal((grad != 0).all(3).all(2).all(0), torch.tensor([first <= c < 3 for c in range(5)]))
    teacher.requires_grad_()
    seg.sigmoid_distillation(logits, teacher, first).backward()
    assert teacher.grad is None


def test_decomposed_distillation_of_a_classifier() -> None:
    rng = torch.Generator().manual_seed(0)
    features, old_features = torch.randn(2, 2, 4, 2, 2, generator=rng, dtype=torch.float64)
    weight, old_weight = (torch.randn(c, 4, generator=rng, dtype=torch.float64) for c in (4, 3))

    def parts(w: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        return (
            torch.einsum("cd,bdhw->bchw", w.clamp(min=0), f),
            torch.einsum("cd,bdhw->bchw", w.clamp(max=0), f),
        )

    ours, theirs = parts(weight.requires_grad_(), features), parts(old_weight, old_features)
    positive, negative = seg.decomposed_distillation(ours, theirs)
    for found, one, other in zip((positive, negative), ours, theirs, strict=True):
        assert found.item() == pytest.approx(binary_by_hand(one.detach().numpy(), other.numpy(), 1), rel=1e-12)
    (positive + negative).backward()
    assert torch.equal((weight.grad != 0).any(1), torch.tensor([False, True, True, False]))  # type: ignore[union-attr]
    # Equal sums of different parts are told apart: the reason for the decomposition.
    shifted = (theirs[0] + 1, theirs[1] - 1)
    least = seg.decomposed_distillation(theirs, theirs)
    assert all(a > b for a, b in zip(seg.decomposed_distillation(shifted, theirs), least, strict=True))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, t: seg.attention_transfer([], [], []), "0 attention maps"),
        (lambda a, t: seg.attention_transfer([a], [t], []), "1 of the teacher and labels for 0"),
        (lambda a, t: seg.attention_transfer([a], [t[:, :1]], [LABELS]), r"the teacher's \[2, 1, 6, 4\]"),
        (lambda a, t: seg.attention_transfer([a], [t], [LABELS[:, :1]]), r"\[2, 1, 3\] for 6 cells of 2 pictures"),
        (lambda a, t: seg.attention_transfer([a], [t], [LABELS], head_layout="x"), "permuted or official_reshape, got"),
        (lambda a, t: seg.labels_on_cells(LABELS, 0), "at least one cell, got 0"),
        (lambda a, t: seg.sigmoid_distillation(a, t[:, :, :1]), r"\[2, 3, 1, 4\], the student's \[2, 3, 6, 4\]"),
        (lambda a, t: seg.sigmoid_distillation(a[:, :2], t), "the student has 2"),
        (lambda a, t: seg.sigmoid_distillation(a, t, 4), "channels 4..2 of the teacher"),
    ],
)
def test_what_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(*attention())
