"""Losses of masks against equations written out pixel by pixel in float64, finite differences, and properties."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sapwood.functional import segmentation as seg

VOID = 255


def softmax(values: np.ndarray) -> np.ndarray:
    shares = np.exp(values - values.max())
    return shares / shares.sum()


def entropy_by_hand(logits: Tensor, target: Tensor, old: list[int], void: int = VOID) -> np.ndarray:
    """[B, H, W]; channels in ``old`` count as the background."""
    x, y = logits.detach().double().numpy(), target.numpy().astype(int)
    out = np.zeros(y.shape)
    for b, i, j in np.ndindex(*y.shape):
        if y[b, i, j] != void:
            p = softmax(x[b, :, i, j])
            out[b, i, j] = -math.log(p[old].sum() if y[b, i, j] in old else p[y[b, i, j]])
    return out


def distillation_by_hand(logits: Tensor, teacher: Tensor, alpha: float, unbiased: bool) -> np.ndarray:
    x, o = logits.detach().double().numpy(), teacher.detach().double().numpy()
    known = o.shape[1]
    out = np.zeros((x.shape[0], *x.shape[2:]))
    for b, i, j in np.ndindex(*out.shape):
        q = softmax(alpha * o[b, :, i, j])
        p = softmax(x[b, :, i, j] if unbiased else x[b, :known, i, j])
        p[0] += p[known:].sum()
        out[b, i, j] = -sum(q[c] * math.log(p[c]) for c in range(known)) / known
    return out


def case(seed: int = 0, channels: int = 5, known: int = 3, dtype: Any = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """(logits, teacher's logits, targets with ignored pixels and every channel)."""
    rng = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, channels, 3, 4, generator=rng, dtype=dtype)
    teacher = 2 * torch.randn(2, known, 3, 4, generator=rng, dtype=dtype)
    target = torch.arange(24).reshape(2, 3, 4)[:, torch.randperm(3, generator=rng)] % (channels + 1)
    return logits.requires_grad_(), teacher, torch.where(target == channels, VOID, target)


def mask(channels: int, *old: int) -> Tensor:
    return torch.isin(torch.arange(channels), torch.tensor(old))


FORMS: list[tuple[Any, list[int]]] = [
    (1, [0]),
    (3, [0, 1, 2]),
    (5, [0, 1, 2, 3, 4]),
    (mask(5, 0, 2), [0, 2]),
    (mask(5, 0, 1, 4), [0, 1, 4]),
]


@pytest.mark.parametrize(("old_classes", "old"), FORMS, ids=str)
@pytest.mark.parametrize("target_dtype", [torch.uint8, torch.int64])
def test_cross_entropy_values(old_classes: Any, old: list[int], target_dtype: Any) -> None:
    logits, _, target = case()
    pixels = entropy_by_hand(logits, target, old)
    target = target.to(target_dtype)
    found = seg.unbiased_cross_entropy(logits, target, old_classes, reduction="none").detach()
    np.testing.assert_allclose(found, pixels, rtol=1e-12, atol=1e-14)
    valid = int((target != VOID).sum())
    assert 0 < valid < target.numel()
    mean = seg.unbiased_cross_entropy(logits, target, old_classes)
    assert mean.item() == pytest.approx(pixels.sum() / valid, rel=1e-12)
    everywhere = seg.unbiased_cross_entropy(logits, target, old_classes, reduction="mean_all")
    assert everywhere.item() == pytest.approx(pixels.sum() / target.numel(), rel=1e-12)


@pytest.mark.parametrize(("old_classes", "old"), FORMS, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "mean_all", "none"])
def test_cross_entropy_gradients(old_classes: Any, old: list[int], reduction: Any) -> None:
    logits, _, target = case()
    assert torch.autograd.gradcheck(
        lambda x: seg.unbiased_cross_entropy(x, target, old_classes, reduction=reduction), (logits,)
    )
    seg.unbiased_cross_entropy(logits, target, old_classes, reduction=reduction).sum().backward()
    ignored = logits.grad.permute(0, 2, 3, 1)[target == VOID]  # type: ignore[union-attr]
    assert ignored.numel() > 0
    assert torch.equal(ignored, torch.zeros_like(ignored))


@pytest.mark.parametrize("known", [1, 3, 5])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_unbiased_distillation(known: int, alpha: float) -> None:
    logits, teacher, _ = case(known=known)
    pixels = distillation_by_hand(logits, teacher, alpha, unbiased=True)
    for reduction, expected in (("none", pixels), ("mean", pixels.mean()), ("mean_all", pixels.mean())):
        found = seg.unbiased_distillation(logits, teacher, alpha, reduction)  # type: ignore[arg-type]
        np.testing.assert_allclose(found.detach(), expected, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(lambda x: seg.unbiased_distillation(x, teacher, alpha, "none"), (logits,))


@pytest.mark.parametrize("known", [1, 3, 5])
def test_distillation_leaves_new_channels_out(known: int) -> None:
    logits, teacher, _ = case(known=known)
    found = seg.distillation(logits, teacher, 0.7)
    assert found.item() == pytest.approx(distillation_by_hand(logits, teacher, 0.7, unbiased=False).mean(), rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: seg.distillation(x, teacher, 0.7), (logits,))
    found.backward()
    assert torch.equal(logits.grad[:, known:], torch.zeros(2, 5 - known, 3, 4, dtype=torch.float64))  # type: ignore[index]


def test_no_gradient_flows_into_the_teacher() -> None:
    logits, teacher, _ = case()
    teacher.requires_grad_()
    (seg.distillation(logits, teacher) + seg.unbiased_distillation(logits, teacher)).backward()
    assert teacher.grad is None
    assert not seg.unbiased_distillation(logits.detach(), teacher).requires_grad


@pytest.mark.parametrize("old_classes", [1, 3, mask(5, 0, 2), mask(5, 0, 1, 4)], ids=str)
@pytest.mark.parametrize("unbiased", [True, False])
def test_both_at_once_are_the_two_apart(old_classes: Any, unbiased: bool) -> None:
    logits, teacher, target = case()
    weights = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def at_once(x: Tensor) -> Tensor:
        entropy, distilled = seg.pixel_losses(
            x, target, teacher, old_classes=old_classes, alpha=0.5, unbiased=unbiased, reduction="none"
        )
        return weights[0] * entropy + weights[1] * distilled

    entropy, distilled = seg.pixel_losses(
        logits, target, teacher, old_classes=old_classes, alpha=0.5, unbiased=unbiased, reduction="mean_all"
    )
    apart = seg.unbiased_distillation if unbiased else seg.distillation
    expected = seg.unbiased_cross_entropy(logits, target, old_classes, reduction="mean_all")
    assert entropy.item() == pytest.approx(expected.item(), rel=1e-13)
    assert distilled.item() == pytest.approx(apart(logits, teacher, 0.5).item(), rel=1e-13)
    assert torch.autograd.gradcheck(at_once, (logits,))


numbers = st.floats(-20, 20, allow_nan=False, width=32)


@settings(max_examples=60, deadline=None)
@given(st.lists(numbers, min_size=5, max_size=5), st.integers(0, 5), st.integers(1, 5), numbers)
def test_a_constant_added_to_all_channels_changes_nothing(
    values: list[float], target: int, old: int, constant: float
) -> None:
    logits = torch.tensor(values, dtype=torch.float64).reshape(1, 5, 1, 1)
    labels = torch.tensor(target if target < 5 else VOID).reshape(1, 1, 1)
    teacher = -logits[:, :old] / 2
    for moved in (logits + constant, logits):
        entropy = seg.unbiased_cross_entropy(moved, labels, old)
        first = seg.unbiased_cross_entropy(logits, labels, old)
        assert entropy.item() == pytest.approx(first.item(), rel=1e-9, abs=1e-12)
        for loss in (seg.distillation, seg.unbiased_distillation):
            assert loss(moved, teacher + constant).item() == pytest.approx(loss(logits, teacher).item(), rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(numbers, min_size=6, max_size=6), st.integers(0, 5))
def test_with_the_background_alone_old_it_is_cross_entropy(values: list[float], target: int) -> None:
    logits = torch.tensor(values, dtype=torch.float64).reshape(1, 6, 1, 1)
    labels = torch.tensor(target).reshape(1, 1, 1)
    plain = torch.nn.functional.cross_entropy(logits, labels).item()
    for found in (
        seg.unbiased_cross_entropy(logits, labels, 1),
        seg.unbiased_cross_entropy(logits, labels, mask(6, 0)),
        seg.pixel_cross_entropy(logits, labels),
    ):
        assert found.item() == pytest.approx(plain, rel=1e-12, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(numbers, min_size=8, max_size=8), st.integers(0, 4), st.sampled_from([0.5, 1.0]))
def test_a_fresh_head_keeps_the_old_probabilities_and_starts_at_the_least_distillation(
    values: list[float], new: int, feature: float
) -> None:
    numbers = torch.tensor(values, dtype=torch.float64)
    weight, bias = numbers[:4, None] / 10, numbers[4:]
    rows, biases, lowered = seg.background_initialisation(weight, bias, new)
    grown_weight = torch.cat([weight, rows])
    grown_bias = torch.cat([lowered[None], bias[1:], biases])
    before = weight[:, 0] * feature + bias
    after = (grown_weight[:, 0] * feature + grown_bias).reshape(1, -1, 1, 1).requires_grad_()
    p, q = after.detach().flatten().softmax(0), before.softmax(0)
    torch.testing.assert_close(torch.cat([p[:1] + p[4:].sum(), p[1:4]]), q, rtol=1e-13, atol=1e-15)
    loss = seg.unbiased_distillation(after, before.reshape(1, 4, 1, 1))
    assert loss.item() == pytest.approx(-(q * q.log()).sum().item() / 4, rel=1e-10, abs=1e-14)
    loss.backward()
    assert after.grad is not None
    assert after.grad.abs().max() < 1e-14


def test_an_old_target_costs_what_all_old_channels_leave_over() -> None:
    """By hand: p = (1, 2, 3, 4) / 10, the first two old."""
    logits = torch.tensor([1.0, 2.0, 3.0, 4.0]).log().reshape(1, 4, 1, 1).expand(1, 4, 1, 4)
    found = seg.unbiased_cross_entropy(logits, torch.tensor([[[0, 1, 2, 3]]]), 2, reduction="none")
    torch.testing.assert_close(found.exp().flatten(), torch.tensor([10 / 3, 10 / 3, 10 / 3, 10 / 4]))


def test_another_ignore_index() -> None:
    logits, _, target = case()
    found = seg.unbiased_cross_entropy(logits, torch.where(target == VOID, -100, target), 2, ignore_index=-100)
    assert found.item() == pytest.approx(seg.unbiased_cross_entropy(logits, target, 2).item())
    as_class = seg.pixel_cross_entropy(logits, target % 5, ignore_index=1, reduction="none")
    np.testing.assert_allclose(as_class.detach(), entropy_by_hand(logits, target % 5, [0], void=1), rtol=1e-12)


def test_nothing_but_ignored_pixels_is_zero() -> None:
    logits, _, target = case()
    loss = seg.unbiased_cross_entropy(logits, torch.full_like(target, VOID), 2)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"old_classes": 0}, r"old_classes counts the background: 1\.\.5, got 0"),
        ({"old_classes": 6}, r"1\.\.5, got 6"),
        ({"old_classes": mask(5, 1)}, "channel 0, is always among the old"),
        ({"old_classes": mask(4, 0)}, r"bool \[5\], got torch.bool \[4\]"),
        ({"old_classes": torch.tensor([1, 0, 0, 0, 0])}, r"bool \[5\], got torch.int64"),
        ({"target": torch.zeros(2, 4, 3, dtype=torch.int64)}, r"targets are \[2, 4, 3\].*sizes must agree"),
        ({"target": torch.full((2, 3, 4), 5)}, r"targets hold \[5\], but the logits have channels 0\.\.4"),
        ({"logits": torch.zeros(2, 5)}, r"must be \[B, C, H, W\], got \[2, 5\]"),
        ({"reduction": "sum"}, "mean, mean_all or none, got 'sum'"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, Any], message: str) -> None:
    logits, _, target = case()
    given = {"logits": logits, "target": target, "old_classes": 2} | arguments
    with pytest.raises(ValueError, match=message):
        seg.unbiased_cross_entropy(**given)


def test_teachers_and_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="teacher has 4 channels, the student 3"):
        seg.distillation(torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 2, 2))
    with pytest.raises(ValueError, match=r"are \[1, 2, 1, 2\], the student's \[1, 3, 2, 2\]"):
        seg.unbiased_distillation(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 1, 2))
    with pytest.raises(ValueError, match="0 or more classes, got -1"):
        seg.background_initialisation(torch.zeros(2, 3), torch.zeros(2), -1)
    with pytest.raises(ValueError, match="no background to start from"):
        seg.background_initialisation(torch.zeros(0, 3), torch.zeros(0), 1)
