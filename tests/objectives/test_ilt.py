"""ILT: three terms against their formulas, and what it asks of the loop."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from sapwood.errors import ConfigError
from sapwood.objectives.base import Outputs
from sapwood.objectives.ilt import IltConfig, IncrementalLearningTechniques
from sapwood.task import Task

SECOND = Task(1, "second", (2, 3), (2, 3), 4, seed=0)


def test_three_terms_and_their_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(2, 4, 3, 3, generator=generator, requires_grad=True)
    tokens = torch.randn(2, 5, 6, generator=generator, requires_grad=True)
    teacher = torch.randn(2, 2, 3, 3, generator=generator)
    kept = torch.randn(2, 5, 6, generator=generator, requires_grad=True)
    targets = torch.tensor([0, 2, 3, 255, 255, 0, 1, 3, 2] * 2).reshape(2, 3, 3)
    objective = IncrementalLearningTechniques(IltConfig())
    assert objective.needs == {"teacher", "features"}
    assert objective.kinds == {"segmentation"}
    loss = objective.loss(Outputs(student, tokens), targets, Outputs(teacher, kept), SECOND)

    entropy = F.cross_entropy(student, targets, ignore_index=255)
    distilled = -(teacher.softmax(1) * student[:, :2].log_softmax(1)).sum() / 2 / 18
    expected = entropy + 100 * distilled + 100 * (tokens - kept.detach()).square().sum() / (2 * 5 * 6)
    torch.testing.assert_close(loss, expected)
    found = torch.autograd.grad(loss, (student, tokens), retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(expected, (student, tokens)))
    assert torch.autograd.grad(loss, kept, allow_unused=True) == (None,)


def test_first_round_is_cross_entropy() -> None:
    logits = torch.zeros(1, 3, 2, 2)
    first = Task(0, "first", (1, 2), (1, 2), 3, seed=0)
    loss = IncrementalLearningTechniques(IltConfig()).loss(
        Outputs(logits), torch.ones(1, 2, 2, dtype=torch.uint8), None, first
    )
    assert loss.item() == pytest.approx(math.log(3))


def test_tokens_that_are_missing_are_named() -> None:
    outputs, targets = Outputs(torch.zeros(1, 3, 2, 2)), torch.zeros(1, 2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="ilt needs the patch tokens"):
        IncrementalLearningTechniques(IltConfig()).loss(outputs, targets, outputs, SECOND)


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match=r"strength must be >= 0.*alpha must be > 0.*features must be >= 0"):
        IltConfig(strength=-1, alpha=-1, features=-1)
