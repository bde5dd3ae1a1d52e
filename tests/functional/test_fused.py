"""The fused pass: how much it keeps and allocates, in pieces or whole, in every layout, precision and range."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sapwood.functional import fused
from sapwood.functional.segmentation import pixel_losses, unbiased_cross_entropy, unbiased_distillation

SCATTERED = torch.tensor([True, False, True, False, False, True, False, False])


def case(batch: int = 3, height: int = 10, width: int = 7, dtype: Any = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(batch, 8, height, width, generator=rng, dtype=torch.float64)
    teacher = 3 * torch.randn(batch, 5, height, width, generator=rng, dtype=torch.float64)
    target = torch.randint(0, 9, (batch, height, width), generator=rng)
    return logits.to(dtype), teacher.to(dtype), torch.where(target == 8, 255, target)


def both(logits: Tensor, teacher: Tensor, target: Tensor, old: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(cross entropy, distillation, gradient of a mixture of them)."""
    leaf = logits.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    entropy, distilled = pixel_losses(leaf, target, teacher, old_classes=old, reduction="none")
    (entropy.sum() - 2 * distilled.square().sum()).backward()
    assert leaf.grad is not None
    return entropy.detach(), distilled.detach(), leaf.grad


@pytest.mark.parametrize("old", [5, SCATTERED], ids=["count", "mask"])
@pytest.mark.parametrize("piece", [1, 8 * 7 * 3, 8 * 7 * 10 * 2], ids=["row", "three rows", "two pictures"])
def test_pieces_make_no_difference(monkeypatch: pytest.MonkeyPatch, old: Any, piece: int) -> None:
    whole = both(*case(), old)
    monkeypatch.setattr(fused, "_CPU_PIECE", piece)
    calls = list(fused._pieces(case()[0]))
    assert len(calls) == {1: 30, 168: 12, 1120: 2}[piece]
    for found, expected in zip(both(*case(), old), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("old", [5, SCATTERED], ids=["count", "mask"])
def test_layout_makes_no_difference(old: Any) -> None:
    logits, teacher, target = case()
    expected = both(logits, teacher, target, old)
    last = logits.to(memory_format=torch.channels_last)
    turned = logits.transpose(2, 3).contiguous().transpose(2, 3)
    strided = torch.stack([logits, logits], -1)[..., 0]
    for other in (last, turned, strided):
        assert not other.is_contiguous()
        for found, wanted in zip(both(other, teacher.mT.contiguous().mT, target, old), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-15)


class Storages(TorchDispatchMode):
    """Sizes in bytes of all storages that operations return, by address."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, int] = {}
        self.kept: list[Tensor] = []  # an address must not be handed out twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.found[leaf.untyped_storage().data_ptr()] = leaf.untyped_storage().nbytes()
                self.kept.append(leaf)
        return result


@pytest.mark.parametrize("old", [5, SCATTERED], ids=["count", "mask"])
def test_only_the_gradient_is_as_large_as_the_logits(monkeypatch: pytest.MonkeyPatch, old: Any) -> None:
    monkeypatch.setattr(fused, "_CPU_PIECE", 1)
    logits, teacher, target = case(batch=4, height=8, width=64)
    logits.requires_grad_()
    given = {tensor.untyped_storage().data_ptr() for tensor in (logits, teacher, target)}
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with Storages() as storages, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        entropy, distilled = pixel_losses(logits, target, teacher, old_classes=old)
        (gradient,) = torch.autograd.grad(entropy * distilled, logits)
    maps = 6 * target.numel() * logits.element_size()
    large = {at for at, size in storages.found.items() if size > maps} - given
    assert large == {gradient.untyped_storage().data_ptr()}
    own = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
    assert sum(size for at, size in own.items() if at not in given) <= maps + 4096


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_halves_are_computed_in_float32(dtype: Any) -> None:
    logits, teacher, target = case(dtype=dtype)
    entropy, distilled, gradient = both(logits, teacher, target, 5)
    exact = both(logits.double(), teacher.double(), target, 5)
    assert entropy.dtype == distilled.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(entropy.double(), exact[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(distilled.double(), exact[1], rtol=1e-5, atol=1e-5)
    loose = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(gradient.double(), exact[2], rtol=loose, atol=loose)


def test_autocast_changes_nothing() -> None:
    logits, teacher, target = case(dtype=torch.float32)
    plain = both(logits, teacher, target, SCATTERED)
    with torch.autocast("cpu", torch.bfloat16):
        inside = both(logits, teacher, target, SCATTERED)
    for found, expected in zip(inside, plain, strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_apart_logits_neither_overflow_nor_vanish(dtype: Any) -> None:
    """Old channels lie 500 below the new one: their probabilities are zero, the loss and its gradient are not."""
    logits = torch.tensor([-500.0, -501.0, 0.0], dtype=dtype).reshape(1, 3, 1, 1).requires_grad_()
    loss = unbiased_cross_entropy(logits, torch.zeros(1, 1, 1, dtype=torch.uint8), 2)
    loss.backward()
    share = torch.tensor([1.0, -1.0], dtype=dtype).div(2).exp()
    share = share / share.sum()  # exp(0) : exp(-1)
    assert loss.item() == pytest.approx(500 - torch.log1p(torch.exp(torch.tensor(-1.0))).item(), rel=1e-6)
    expected = torch.cat([-share, torch.ones(1, dtype=dtype)]).reshape(1, 3, 1, 1)
    torch.testing.assert_close(logits.grad, expected, rtol=1e-5, atol=1e-6)

    logits.grad = None
    teacher = torch.tensor([900.0, -900.0], dtype=dtype).reshape(1, 2, 1, 1)
    loss = unbiased_distillation(logits, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)  # the new channel is all of the student's background
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), atol=1e-6, rtol=0)


def test_a_loss_nobody_asks_for_costs_no_gradient() -> None:
    logits, teacher, target = case()
    logits.requires_grad_()
    entropy, distilled = pixel_losses(logits, target, teacher, old_classes=5)
    (alone,) = torch.autograd.grad(entropy, logits, retain_graph=True)
    (expected,) = torch.autograd.grad(unbiased_cross_entropy(logits, target, 5), logits)
    torch.testing.assert_close(alone, expected, rtol=1e-13, atol=1e-15)
    (alone,) = torch.autograd.grad(distilled, logits)
    (expected,) = torch.autograd.grad(unbiased_distillation(logits, teacher), logits)
    torch.testing.assert_close(alone, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("old", [5, SCATTERED], ids=["count", "mask"])
def test_a_gpu_gives_the_same(old: Any) -> None:
    for found, expected in zip(both(*(t.cuda() for t in case()), old), both(*case(), old), strict=True):
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-12, atol=1e-14)
