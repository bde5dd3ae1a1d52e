"""MiB: both losses against their equations, which channels are old, and a head that starts without a jump."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sapwood.backbones.base import Tokens
from sapwood.errors import ConfigError
from sapwood.heads.dense import DenseConfig, DenseHead
from sapwood.objectives.base import Outputs
from sapwood.objectives.mib import MibConfig, ModellingTheBackground
from sapwood.task import Task

FIRST = Task(0, "first", (1, 2), (1, 2), 3, seed=0)
SECOND = Task(1, "second", (3, 4), (3, 4), 5, seed=0)
MIXED = Task(1, "mixed", (3, 4), (1, 3, 4), 5, seed=0)  # a known class is annotated again
AGAIN = Task(1, "again", (), (2,), 3, seed=0)  # nothing but a known class
EVERYTHING = Task(1, "everything", (3, 4), (1, 2, 3, 4), 5, seed=0)


def case(channels: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, channels, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, channels + 1, (2, 4, 5), generator=generator)
    return logits, teacher, torch.where(targets == channels, 255, targets)


def expected_loss(logits: Tensor, targets: Tensor, teacher: Tensor, old: list[int], config: MibConfig) -> Tensor:
    p = logits.softmax(1)
    picked = p.gather(1, targets.clamp(max=p.shape[1] - 1)[:, None])[:, 0]
    entropy = -torch.where(torch.isin(targets, torch.tensor(old)), p[:, old].sum(1), picked).log()
    entropy = torch.where(targets == 255, 0, entropy).sum()
    count = targets.numel() if config.ce_denominator == "all_pixels" else int((targets != 255).sum())
    goal = (config.alpha * teacher).softmax(1)
    background = p[:, :1] + p[:, 3:].sum(1, keepdim=True)
    distilled = -(goal * torch.cat([background, p[:, 1:3]], 1).log()).sum(1).mean() / 3
    return entropy / count + config.strength * distilled


@pytest.mark.parametrize(
    ("task", "old"),
    [(SECOND, [0, 1, 2]), (MIXED, [0, 2]), (AGAIN, [0, 1]), (EVERYTHING, [0])],
    ids=lambda value: getattr(value, "name", str(value)),
)
@pytest.mark.parametrize("config", [MibConfig(), MibConfig(strength=3.0, alpha=0.5, ce_denominator="all_pixels")])
def test_loss_and_gradient(task: Task, old: list[int], config: MibConfig) -> None:
    logits, teacher, targets = case(task.known)
    loss = ModellingTheBackground(config).loss(Outputs(logits), targets.to(torch.uint8), Outputs(teacher), task)
    expected = expected_loss(logits, targets, teacher, old, config)
    torch.testing.assert_close(loss, expected)
    (found,), (wanted,) = torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits)
    torch.testing.assert_close(found, wanted)


def test_first_round_is_cross_entropy() -> None:
    logits, _, targets = case(3)
    loss = ModellingTheBackground(MibConfig()).loss(Outputs(logits), targets, None, FIRST)
    torch.testing.assert_close(loss, F.cross_entropy(logits, targets, ignore_index=255))
    loss = ModellingTheBackground(MibConfig(ce_denominator="all_pixels")).loss(Outputs(logits), targets, None, FIRST)
    torch.testing.assert_close(loss, F.cross_entropy(logits, targets, ignore_index=255, reduction="sum") / 40)


def head_with(channels: int, **options: Any) -> DenseHead:
    head = DenseHead(DenseConfig(**options), dim=6).eval()
    head.grow(channels, torch.Generator().manual_seed(1))
    with torch.no_grad():
        head.classifier.get_parameter("bias").copy_(torch.randn(channels, generator=torch.Generator().manual_seed(2)))
    return head


def grown(head: DenseHead, objective: ModellingTheBackground, task: Task) -> None:
    head.grow(len(task.new), torch.Generator().manual_seed(task.index))
    objective.initialise(head, task)


def tokens() -> Tokens:
    patches = torch.randn(2, 12, 6, generator=torch.Generator().manual_seed(3))
    return Tokens(patches.mean(1), patches, (3, 4))


@pytest.mark.parametrize("stem", ["shared", "per_task"])
def test_old_probabilities_are_kept_round_after_round(stem: str) -> None:
    """Also where new classes have a stem of their own to read."""
    objective, head = ModellingTheBackground(MibConfig()), head_with(3, stem=stem)
    for task in (SECOND, Task(2, "third", (5,), (5,), 6, seed=0), Task(3, "fourth", (6, 7, 8), (6, 7, 8), 9, seed=0)):
        before = head(tokens()).detach()
        bias = head.classifier.get_parameter("bias")[0].item()
        grown(head, objective, task)
        after = head(tokens())
        old, now = before.softmax(1), after.detach().softmax(1)
        known = before.shape[1]
        torch.testing.assert_close(now[:, 1:known], old[:, 1:], rtol=1e-5, atol=1e-7)
        together = now[:, 0] + now[:, known:].sum(1)
        torch.testing.assert_close(together, old[:, 0], rtol=1e-5, atol=1e-7)
        # The bias that an earlier round lowered is lowered again.
        lowered = bias - math.log(len(task.new) + 1)
        assert head.classifier.get_parameter("bias")[[0, *task.new]].tolist() == pytest.approx(
            [lowered] * (len(task.new) + 1)
        )
        for channel in task.new:
            assert torch.equal(head.classifier.weight[channel], head.classifier.weight[0])
        # The distillation starts at its minimum: it does not pull at the head's outputs.
        logits = after.detach().requires_grad_()
        ignored = torch.full((2, 3, 4), 255, dtype=torch.uint8)
        objective.loss(Outputs(logits), ignored, Outputs(before), task).backward()
        assert logits.grad is not None
        assert logits.grad.abs().max() < 1e-7


def test_weight_only_and_random() -> None:
    head, objective = head_with(3), ModellingTheBackground(MibConfig(head_init="weight_only"))
    bias = head.classifier.get_parameter("bias").detach().clone()
    grown(head, objective, SECOND)
    assert torch.equal(head.classifier.weight[3:], head.classifier.weight[:1].expand(2, -1))
    assert torch.equal(head.classifier.get_parameter("bias"), torch.cat([bias, torch.zeros(2)]))

    head, objective = head_with(3), ModellingTheBackground(MibConfig(head_init="random"))
    other = head_with(3)
    grown(head, objective, SECOND)
    other.grow(2, torch.Generator().manual_seed(SECOND.index))
    for name, value in other.state_dict().items():
        assert torch.equal(head.state_dict()[name], value)


@pytest.mark.parametrize("task", [FIRST, AGAIN], ids=lambda task: task.name)
def test_nothing_to_start_leaves_the_head_alone(task: Task) -> None:
    head, other = head_with(3), head_with(3)
    ModellingTheBackground(MibConfig()).initialise(head, task)
    assert torch.equal(head.classifier.weight, other.classifier.weight)
    assert torch.equal(head.classifier.get_parameter("bias"), other.classifier.get_parameter("bias"))


def test_bad_settings() -> None:
    given: Any = {"strength": -1, "alpha": 0, "head_init": "zero", "ce_denominator": 1}
    with pytest.raises(ConfigError) as caught:
        MibConfig(**given)
    for name in given:
        assert f"objective.{name} must be" in str(caught.value)
