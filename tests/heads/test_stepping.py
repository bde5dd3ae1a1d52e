"""What a step of training may move in a classifier, and what has to stay."""

from __future__ import annotations

import pytest
import torch

from sapwood.functional.losses import distillation, scoped_cross_entropy
from sapwood.heads.classifiers import Classifier, CosineClassifier, LinearClassifier

DIM = 6


@pytest.fixture
def pictures(rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Features that have a large mean in common, of three classes."""
    targets = torch.arange(3).repeat(10)
    return 5 + torch.randn(3, DIM, generator=rng)[targets] + 0.1 * torch.randn(30, DIM, generator=rng), targets


def trained(classifier: Classifier, x: torch.Tensor, y: torch.Tensor, scope: torch.Tensor | None, old: int = 0) -> None:
    """Twenty steps of AdamW on a cross entropy, and on a distillation of the first ``old`` rows."""
    told = classifier(x).detach()[:, :old]
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=0.05, weight_decay=0.0)
    for _ in range(20):
        optimizer.zero_grad()
        logits = classifier(x)
        loss = scoped_cross_entropy(logits, y, scope)
        if old:
            loss = loss + 3 * distillation(logits, told, 2.0)
        loss.backward()
        with classifier.stepping(scope):
            optimizer.step()


@pytest.mark.parametrize("size", [0.01, 1.0])
def test_new_rows_have_their_size(size: float, rng: torch.Generator) -> None:
    classifier = LinearClassifier(DIM, size=size) if size == 1 else LinearClassifier(DIM)
    classifier.grow(50, rng)
    assert classifier.weight.abs().max() <= size * DIM**-0.5
    assert classifier.weight.std().item() == pytest.approx(size * (3 * DIM) ** -0.5, rel=0.1)
    assert not classifier.bias.any()


def test_idle_rows_are_drawn_and_others_are_not(rng: torch.Generator) -> None:
    classifier = LinearClassifier(DIM)
    classifier.grow(3, rng)
    with torch.no_grad():
        classifier.weight[1, 2] = 1.5
    before = classifier.weight.detach().clone()
    classifier.draw_idle(rng)
    assert torch.equal(classifier.weight[1], before[1])
    assert classifier.weight[[0, 2]].norm(dim=1).min() > 0.1


def test_the_sum_of_a_rounds_rows_stays(pictures: tuple[torch.Tensor, torch.Tensor], rng: torch.Generator) -> None:
    x, y = pictures
    classifier = LinearClassifier(DIM)
    classifier.grow(2, rng)
    with torch.no_grad():
        classifier.weight += torch.randn(2, DIM, generator=rng)
    old = classifier.weight.detach().clone()
    classifier.grow(3, rng)
    begun = classifier.weight.detach()[2:].sum(0)
    trained(classifier, x, y + 2, torch.tensor([2, 3, 4]))
    assert torch.equal(classifier.weight[:2], old)
    assert not classifier.bias[:2].any()
    assert (classifier(x)[:, 2:].argmax(1) == y).all()
    torch.testing.assert_close(classifier.weight[2:].sum(0), begun, atol=1e-5, rtol=0)
    torch.testing.assert_close(classifier(x)[:, 2:].sum(1), x @ begun, atol=1e-4, rtol=0)


def test_without_that_steps_of_adam_move_the_sum(
    pictures: tuple[torch.Tensor, torch.Tensor], rng: torch.Generator
) -> None:
    x, y = pictures
    classifier = LinearClassifier(DIM)
    classifier.grow(3, rng)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=0.05, weight_decay=0.0)
    for _ in range(20):
        optimizer.zero_grad()
        scoped_cross_entropy(classifier(x), y, None).backward()
        assert classifier.weight.grad is not None
        assert classifier.weight.grad.sum(0).abs().max() < 1e-5
        optimizer.step()
    assert classifier.weight.sum(0).abs().max() > 0.1


@pytest.mark.parametrize("classifier", [LinearClassifier(DIM), CosineClassifier(DIM, 8.0)], ids=["linear", "cosine"])
def test_distilled_rows_rest(
    classifier: Classifier, pictures: tuple[torch.Tensor, torch.Tensor], rng: torch.Generator
) -> None:
    """At its minimum a distillation has rounding for a gradient, and Adam would take full steps along it."""
    x, y = pictures
    classifier.grow(3, rng)
    trained(classifier, x, y, None)
    old = classifier.weight.detach().clone()
    classifier.grow(3, rng)
    new = classifier.weight.detach()[3:].clone()
    trained(classifier, x + 1, y + 3, torch.tensor([3, 4, 5]), old=3)
    assert torch.equal(classifier.weight[:3], old)
    assert (classifier.weight[3:] - new).abs().max() > 1e-3
