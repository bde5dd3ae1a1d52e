"""DKD: the five terms against their equations, what void pixels count, and where new rows begin."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sapwood.backbones.base import Tokens
from sapwood.errors import ConfigError
from sapwood.heads.dense import DenseConfig, DenseHead
from sapwood.objectives.base import Outputs
from sapwood.objectives.dkd import DecomposedDistillation, DkdConfig
from sapwood.observing import outputs_of
from sapwood.task import Task

FIRST = Task(0, "first", (1, 2), (1, 2), 3, seed=0)
SECOND = Task(1, "second", (3, 4), (3, 4), 5, seed=0)
MIXED = Task(1, "mixed", (3, 4), (1, 3, 4), 5, seed=0)  # a known class is annotated again
AGAIN = Task(1, "again", (), (1, 2), 3, seed=0)  # nothing but known classes
SOME = DkdConfig(3.0, 0.5, 0.25, 2.0, 4.0, 1.5)

Case = tuple[Outputs, Tensor, Outputs]


def case(channels: int) -> Case:
    generator = torch.Generator().manual_seed(0)

    def maps(count: int, *size: int) -> Tensor:
        return torch.randn(2, count, *size, generator=generator, dtype=torch.float64)

    outputs = Outputs(maps(channels, 4, 5), parts=(maps(channels, 2, 3), maps(channels, 2, 3)))
    teacher = Outputs(maps(3, 4, 5), parts=(maps(3, 2, 3), maps(3, 2, 3)))
    assert outputs.parts is not None
    for tensor in (outputs.logits, *outputs.parts):
        tensor.requires_grad_()
    targets = torch.randint(0, channels + 1, (2, 4, 5), generator=generator)
    return outputs, torch.where(targets == channels, 255, targets), teacher


def entropy(x: Tensor, probability: Tensor) -> Tensor:
    p = 1 / (1 + torch.exp(-x))
    return -(probability * p.log() + (1 - probability) * (1 - p).log())


def expected_loss(
    outputs: Outputs, targets: Tensor, teacher: Outputs | None, classes: list[int], c: DkdConfig
) -> Tensor:
    """Term by term and class by class."""
    x = outputs.logits
    valid = torch.ones_like(targets) if c.void_train == "negative" else (targets != 255).long()
    scale = c.first_positive_weight if teacher is None else c.positive_weight
    loss = c.auxiliary * torch.log(1 + x[:, 0].exp()).mean()
    for channel in classes:
        p = 1 / (1 + torch.exp(-x[:, channel]))
        pixel = torch.where(targets == channel, -scale * p.log(), -(1 - p).log())
        loss = loss + (valid * pixel).sum() / valid.sum()
    if teacher is None:
        return loss
    assert outputs.parts is not None
    assert teacher.parts is not None
    pairs = ((x, teacher.logits), *zip(outputs.parts, teacher.parts, strict=True))
    for weight, (ours, theirs) in zip((c.strength, c.positive, c.negative), pairs, strict=True):
        for channel in (1, 2):
            loss = loss + weight * entropy(ours[:, channel], theirs[:, channel].sigmoid()).mean()
    return loss


@pytest.mark.parametrize(
    ("task", "classes"), [(SECOND, [3, 4]), (MIXED, [1, 3, 4]), (AGAIN, [1, 2])], ids=["second", "mixed", "again"]
)
@pytest.mark.parametrize("config", [DkdConfig(), SOME, replace(SOME, void_train="negative")], ids=["", "some", "void"])
def test_loss_and_gradient(task: Task, classes: list[int], config: DkdConfig) -> None:
    outputs, targets, teacher = case(task.known)
    loss = DecomposedDistillation(config).loss(outputs, targets.to(torch.uint8), teacher, task)
    expected = expected_loss(outputs, targets, teacher, classes, config)
    torch.testing.assert_close(loss, expected)
    assert outputs.parts is not None
    inputs = (outputs.logits, *outputs.parts)
    for found, wanted in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("config", [DkdConfig(), replace(SOME, void_train="negative")])
def test_first_round(config: DkdConfig) -> None:
    outputs, targets, _ = case(3)
    outputs = replace(outputs, parts=None)
    loss = DecomposedDistillation(config).loss(outputs, targets, None, FIRST)
    torch.testing.assert_close(loss, expected_loss(outputs, targets, None, [1, 2], config))


def test_gradients_by_finite_differences() -> None:
    outputs, targets, teacher = case(5)
    assert outputs.parts is not None

    def loss(logits: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        given = Outputs(logits, parts=(positive, negative))
        return DecomposedDistillation(SOME).loss(given, targets, teacher, SECOND)

    assert torch.autograd.gradcheck(loss, (outputs.logits, *outputs.parts))


def test_by_hand() -> None:
    """Two pixels, one of the new class, one void: all logits 0 but that of the new class, log 3 (probability 3/4)."""
    logits = torch.zeros(1, 3, 1, 2, dtype=torch.float64)
    logits[:, 2] = math.log(3)
    zero = torch.zeros(1, 2, 1, 1, dtype=torch.float64)
    parts = torch.zeros(1, 3, 1, 1, dtype=torch.float64)
    targets, task = torch.tensor([[[2, 255]]]), Task(1, "t", (2,), (2,), 3, seed=0)
    outputs = Outputs(logits, parts=(parts, parts))
    teacher = Outputs(torch.zeros(1, 2, 1, 2, dtype=torch.float64), parts=(zero, zero))
    config = DkdConfig(1.0, 1.0, 1.0, 1.0, 2.0, 1.0)
    rest = 4 * math.log(2)  # three distillations and the auxiliary classifier's softplus(0)
    found = DecomposedDistillation(config).loss(outputs, targets, teacher, task).item()
    assert found == pytest.approx(rest + math.log(4 / 3))
    negative = replace(config, void_train="negative")
    found = DecomposedDistillation(negative).loss(outputs, targets, teacher, task).item()
    assert found == pytest.approx(rest + (math.log(4 / 3) + math.log(4)) / 2)


def test_void_pixels_pull_at_nothing_unless_they_are_negatives() -> None:
    outputs, _, _ = case(3)
    void = torch.full((2, 4, 5), 255)
    for void_train, moved in (("ignore", False), ("negative", True)):
        config: Any = {"void_train": void_train, "auxiliary": 0.0}
        loss = DecomposedDistillation(DkdConfig(**config)).loss(outputs, void, None, FIRST)
        (gradient,) = torch.autograd.grad(loss, outputs.logits)
        assert bool(gradient[:, 1:].abs().max() > 0) is moved
        assert (gradient[:, 1:] >= 0).all()
        assert gradient[:, 0].abs().max() == 0


def test_only_annotated_classes_learn_from_labels() -> None:
    outputs, targets, teacher = case(5)
    config = DkdConfig(strength=0, positive=0, negative=0, auxiliary=0)
    loss = DecomposedDistillation(config).loss(outputs, targets, teacher, SECOND)
    (gradient,) = torch.autograd.grad(loss, outputs.logits)
    assert gradient[:, :3].abs().max() == 0
    assert gradient[:, 3:].abs().min() >= 0
    assert gradient[:, 3:].abs().max() > 0


def test_a_student_like_its_teacher_is_at_the_minimum() -> None:
    """Each distillation is lowest, with gradient 0, where the old classes' scores and parts are the teacher's."""
    _, targets, teacher = case(5)
    assert teacher.parts is not None
    grown = [torch.cat([x, torch.randn(2, 2, *x.shape[2:])], 1) for x in (teacher.logits, *teacher.parts)]
    inputs = [x.requires_grad_() for x in grown]
    outputs = Outputs(inputs[0], parts=(inputs[1], inputs[2]))
    ignored = torch.full_like(targets, 255)
    loss = DecomposedDistillation(DkdConfig(auxiliary=0)).loss(outputs, ignored, teacher, SECOND)
    for gradient in torch.autograd.grad(loss, inputs):
        assert gradient.abs().max() < 1e-12


def head_with(channels: int) -> DenseHead:
    head = DenseHead(DenseConfig(**DecomposedDistillation.head), dim=6)  # type: ignore[arg-type]
    head.grow(channels, torch.Generator().manual_seed(1))
    with torch.no_grad():
        head.classifier.bias.copy_(torch.randn(channels, generator=torch.Generator().manual_seed(2)))
    return head


def tokens() -> Tokens:
    patches = torch.randn(2, 12, 6, generator=torch.Generator().manual_seed(3))
    return Tokens(patches.mean(1), patches, (3, 4))


def test_new_rows_begin_as_the_auxiliary_classifier() -> None:
    head = head_with(3)
    before = head(tokens())
    head.grow(2, torch.Generator().manual_seed(5))
    DecomposedDistillation(DkdConfig()).initialise(head, SECOND)
    for parameter in (head.classifier.weight, head.classifier.bias):
        assert torch.equal(parameter[3:], parameter[:1].expand_as(parameter[3:]))
    after = head(tokens())
    torch.testing.assert_close(after[:, :3], before)
    torch.testing.assert_close(after[:, 3:], before[:, :1].expand(-1, 2, -1, -1))


def test_or_new_rows_begin_at_one_in_ten() -> None:
    head = head_with(3)
    before = head(tokens())
    head.grow(2, torch.Generator().manual_seed(5))
    DecomposedDistillation(DkdConfig(head_init="prior")).initialise(head, SECOND)
    after = head(tokens())
    torch.testing.assert_close(after[:, :3], before)
    torch.testing.assert_close(after[:, 3:].sigmoid(), torch.full_like(after[:, 3:], 0.1))


@pytest.mark.parametrize("task", [FIRST, AGAIN], ids=lambda task: task.name)
def test_nothing_to_start_leaves_the_head_alone(task: Task) -> None:
    head, other = head_with(3), head_with(3)
    DecomposedDistillation(DkdConfig()).initialise(head, task)
    assert torch.equal(head.classifier.weight, other.classifier.weight)
    assert torch.equal(head.classifier.bias, other.classifier.bias)


def test_the_auxiliary_loss_moves_its_own_row_alone() -> None:
    head = head_with(3)
    outputs = outputs_of(head, tokens(), (6, 8), DecomposedDistillation.needs)
    assert outputs.parts is not None
    torch.testing.assert_close(
        sum(outputs.parts) + head.classifier.bias.reshape(-1, 1, 1),  # type: ignore[operator]
        head(tokens()),
    )
    DecomposedDistillation(DkdConfig()).loss(outputs, torch.full((2, 6, 8), 255), None, FIRST).backward()
    assert head.classifier.weight.grad is not None
    assert head.classifier.weight.grad[0].abs().max() > 0
    assert head.classifier.weight.grad[1:].abs().max() == 0
    assert all(one.grad is None or not one.grad.any() for one in head.decoder.parameters())  # type: ignore[union-attr]


def test_settings() -> None:
    assert DkdConfig() == DkdConfig(5.0, 5.0, 5.0, 1.0, 2.0, 1.0, "ignore", "auxiliary")
    given: Any = {"strength": -1, "positive": math.inf, "negative": math.nan, "auxiliary": -2, "void_train": "maybe"}
    given |= {"positive_weight": -1, "first_positive_weight": -1, "head_init": "balanced"}
    with pytest.raises(ConfigError) as caught:
        DkdConfig(**given)
    for name in given:
        assert f"objective.{name} must be" in str(caught.value)
