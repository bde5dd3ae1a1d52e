"""Synthetic outputs in float64 for the objectives that learn masks, and a head that grows."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sapwood.heads.dense import DenseConfig, DenseHead
from sapwood.objectives.base import Objective, Outputs
from sapwood.task import Task

FIRST = Task(0, "first", (1, 2), (1, 2), 3, seed=0)
SECOND = Task(1, "second", (3, 4), (3, 4), 5, seed=0)
MIXED = Task(1, "mixed", (3, 4), (1, 3, 4), 5, seed=0)  # a known class is annotated again
AGAIN = Task(1, "again", (), (1, 2), 3, seed=0)  # nothing but known classes, all of them
ROUNDS = [SECOND, MIXED, AGAIN]


class Case(NamedTuple):
    """Targets are uint8 [3, 8, 8]; ``inputs`` are the student's tensors, which have gradients."""

    outputs: Outputs
    teacher: Outputs
    targets: Tensor
    inputs: list[Tensor]


class Batch(NamedTuple):
    targets: Tensor


def case(task: Task, grid: tuple[int, int] = (4, 4)) -> Case:
    """Three pictures: background and annotated classes; the same, half of it ignored; no background."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)

    def outputs(channels: int) -> Outputs:
        attention = tuple(draw(3, heads, cells, keys).softmax(3) for heads, cells, keys in ((2, 16, 17), (1, 4, 4)))
        maps = tuple(draw(3, width, *grid) for width in (2, 3, 5))
        return Outputs(draw(3, channels, 8, 8), maps=maps, grid_logits=draw(3, channels, *grid), attention=attention)

    choices = torch.tensor([0, 0, *task.annotated])
    targets = choices[torch.randint(0, len(choices), (3, 8, 8), generator=generator)]
    targets[1, :4] = 255
    targets[2] = targets[2].clamp(min=task.annotated[0])
    student, teacher = outputs(task.known), outputs(3)
    assert student.grid_logits is not None
    inputs = [student.logits, student.grid_logits, *student.maps, *student.attention]
    for tensor in inputs:
        tensor.requires_grad_()
    return Case(student, teacher, targets.to(torch.uint8), inputs)


def measured(objective: Any, given: Case, task: Task) -> Any:
    """The objective once it has seen the round's only batch."""
    objective.before_task(lambda: [Batch(given.targets)], lambda batch: given.teacher, task)
    return objective


def check_equal(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    """Two losses and all their gradients are the same."""
    torch.testing.assert_close(found, expected)
    ours = torch.autograd.grad(found, inputs, allow_unused=True, retain_graph=True)
    theirs = torch.autograd.grad(expected, inputs, allow_unused=True, retain_graph=True)
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)


def folded(logits: Tensor) -> Tensor:
    """The three channels before the round, the new ones' logits added to the background's."""
    background = logits[:, 0]
    for channel in range(3, logits.shape[1]):
        background = background + logits[:, channel]
    return torch.stack([background, logits[:, 1], logits[:, 2]], 1)


def root(task: Task) -> float:
    """sqrt(channels / new channels)."""
    return math.sqrt(task.known / len(task.new)) if task.new else 1.0


def unbiased_distillation(logits: Tensor, teacher: Tensor) -> Tensor:
    """MiB's, from probabilities."""
    p, q = logits.softmax(1), teacher.softmax(1)
    background = p[:, :1] + p[:, 3:].sum(1, keepdim=True)
    return -(q * torch.cat([background, p[:, 1:3]], 1).log()).sum(1).mean() / 3


def cross_entropy(logits: Tensor, labels: Tensor, background: tuple[int, ...] = (0,)) -> Tensor:
    """[B, H, W] from probabilities; 0 where ignored; labels among ``background`` mean any of these channels."""
    p, labels = logits.softmax(1), labels.long()
    picked = p.gather(1, labels.clamp(max=p.shape[1] - 1)[:, None])[:, 0]
    shared = p[:, list(background)].sum(1)
    losses = -torch.where(torch.isin(labels, torch.tensor(background)), shared, picked).log()
    return torch.where(labels == 255, 0.0, losses)


def grown(objective: Objective, task: Task) -> tuple[DenseHead, DenseHead]:
    """(a head before the round, the same one grown, its new rows started by the objective)."""
    heads = []
    for _ in range(2):
        head = DenseHead(DenseConfig(), dim=6)
        head.grow(3, torch.Generator().manual_seed(1))
        with torch.no_grad():
            head.classifier.get_parameter("bias").copy_(torch.tensor([0.5, -1.0, 2.0]))
        heads.append(head)
    heads[1].grow(len(task.new), torch.Generator().manual_seed(2))
    objective.initialise(heads[1], task)
    return heads[0], heads[1]
