"""LwF against its formula, and what the teacher costs and says."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sapwood.adapters import ADAPTERS
from sapwood.backbones import create_backbone
from sapwood.collector import Collector
from sapwood.errors import ConfigError
from sapwood.heads import HEADS
from sapwood.network import Network, Teacher
from sapwood.objectives.base import Outputs
from sapwood.objectives.lwf import LearningWithoutForgetting, LwfConfig
from sapwood.objectives.pixels import DistillConfig
from sapwood.task import Task

SECOND = Task(1, "second", (2, 3), (2, 3), 4, seed=0)


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


@pytest.mark.parametrize("scope", ["own", "seen"])
def test_loss_and_gradient(scope: Any) -> None:
    student = [[0.5, -1.0, 2.0, 0.3], [1.5, 0.2, -0.4, 0.9]]
    teacher = [[1.0, -2.0], [0.1, 0.4]]
    targets = [2, 3]
    objective = LearningWithoutForgetting(LwfConfig(strength=3.0, temperature=2.0, scope=scope))
    logits = torch.tensor(student, dtype=torch.float64, requires_grad=True)
    loss = objective.loss(
        Outputs(logits), torch.tensor(targets), Outputs(torch.tensor(teacher, dtype=torch.float64)), SECOND
    )

    classes = [2, 3] if scope == "own" else [0, 1, 2, 3]
    value, gradient = 0.0, [[0.0] * 4 for _ in student]
    for row, (z, t, target) in enumerate(zip(student, teacher, targets, strict=True)):
        share = dict(zip(classes, softmax([z[c] for c in classes]), strict=True))
        value += -math.log(share[target]) / 2
        for c in classes:
            gradient[row][c] += (share[c] - (c == target)) / 2
        goal, mine = softmax([v / 2 for v in t]), softmax([v / 2 for v in z[:2]])
        value += 3 * -sum(g * math.log(m) for g, m in zip(goal, mine, strict=True)) / 2
        for c in (0, 1):
            gradient[row][c] += 3 * (mine[c] - goal[c]) / 2 / 2  # once for T, once for the mean
    assert loss.item() == pytest.approx(value, rel=1e-12)
    loss.backward()
    torch.testing.assert_close(logits.grad, torch.tensor(gradient, dtype=torch.float64))


def test_first_round_has_no_teacher() -> None:
    objective = LearningWithoutForgetting(LwfConfig())
    first = Task(0, "first", (0, 1), (0, 1), 2, seed=0)
    logits = torch.tensor([[2.0, 0.0]])
    loss = objective.loss(Outputs(logits), torch.tensor([0]), None, first)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)))


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match=r"strength must be >= 0.*temperature must be > 0"):
        LwfConfig(strength=-1, temperature=0)


@pytest.mark.parametrize("denominator", ["valid", "all_pixels"])
def test_pixels(denominator: Any) -> None:
    """Truncated before the softmax, divided by the old channels, over all pixels; other settings are the defaults."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(2, 4, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 2, 3, 3, generator=generator, dtype=torch.float64)
    targets = torch.tensor([0, 2, 3, 255, 255, 0, 1, 3, 2] * 2).reshape(2, 3, 3)
    assert LearningWithoutForgetting.config_type("segmentation") is DistillConfig
    objective = LearningWithoutForgetting(DistillConfig(alpha=0.5, ce_denominator=denominator))
    loss = objective.loss(Outputs(student), targets.to(torch.uint8), Outputs(teacher), SECOND)

    entropy = F.cross_entropy(student, targets, ignore_index=255, reduction="sum") / (
        14 if denominator == "valid" else 18
    )
    goal = (teacher / 2).softmax(1)
    expected = entropy - 100 * (goal * student[:, :2].log_softmax(1)).sum() / 2 / 18
    torch.testing.assert_close(loss, expected)
    (found,), (wanted,) = torch.autograd.grad(loss, student), torch.autograd.grad(expected, student)
    torch.testing.assert_close(found, wanted)
    alone = objective.loss(Outputs(student), targets, None, SECOND)
    torch.testing.assert_close(alone, entropy)


def test_bad_pixel_settings() -> None:
    with pytest.raises(ConfigError, match=r"ce_denominator must be .*strength must be >= 0.*alpha must be > 0"):
        DistillConfig(ce_denominator="none", strength=math.inf, alpha=0)  # type: ignore[arg-type]


def network_with(name: str) -> Network:
    backbone = create_backbone("random:dinov2-tiny", 28)
    adapter = ADAPTERS[name](ADAPTERS[name].Config(), backbone.sites, backbone.info)
    head = HEADS["linear"](HEADS["linear"].Config(), backbone.info.dim)
    head.grow(2, torch.Generator().manual_seed(0))
    head.classifier.draw_idle(torch.Generator().manual_seed(0))
    network = Network(backbone, adapter, head)
    task, statistics = Task(0, "first", (0, 1), (0, 1), 2, seed=0), Collector(network, Fixed(), 4)
    adapter.before_task(task, statistics)
    disturb(network, 1)
    adapter.after_task(task, statistics)
    network.refold()
    return network


class Fixed:
    """A feed of the same four pictures."""

    count = batch_size = 4

    def batches(self, epoch: int, start: int, size: int | None = None, part: Any = None) -> Iterator[Any]:
        yield SimpleNamespace(images=images(), targets=torch.zeros(4))


@torch.no_grad()
def disturb(network: Network, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.trainable().values():
        parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def images() -> Tensor:
    return torch.randint(0, 256, (4, 28, 28, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def addresses(*objects: Any) -> set[int]:
    """Memory of all tensors that hang on the objects' modules, wherever they hide."""
    found = set()
    for thing in objects:
        for module in thing.modules():
            found |= {tensor.data_ptr() for tensor in module.__dict__.values() if isinstance(tensor, Tensor)}
            found |= {tensor.data_ptr() for tensor in [*module.parameters(), *module.buffers()] if tensor.numel()}
    return found


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_teacher_is_no_second_backbone(name: str) -> None:
    network = network_with(name)
    teacher = Teacher(network)
    own = addresses(teacher.network, teacher.adapter, teacher.head) - addresses(network)
    small = len(addresses(network.adapter, network.head))
    if network.adapter.trains_backbone:
        assert teacher.network is not network
        assert len(own) >= len(list(network.backbone.parameters()))
    else:
        assert teacher.network is network
        assert len(own) == small
    assert not any(
        parameter.requires_grad for part in (teacher.adapter, teacher.head) for parameter in part.parameters()
    )
    assert all(parameter.requires_grad for parameter in network.trainable().values())


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_teacher_stays_while_the_student_learns(name: str) -> None:
    network = network_with(name)
    before = network(images()).logits.detach()
    teacher = Teacher(network)
    assert torch.equal(teacher(images()).logits, before)
    network.head.grow(2, torch.Generator().manual_seed(5))
    network.head.classifier.draw_idle(torch.Generator().manual_seed(5))
    disturb(network, 2)
    after = network(images()).logits
    assert not torch.allclose(after[:, :2], before, atol=1e-3)
    told = teacher(images()).logits
    assert torch.equal(told, before)
    assert not told.requires_grad
    assert torch.equal(network(images()).logits, after)  # asking the teacher leaves the student as it is


def test_a_failing_teacher_gives_the_slot_back() -> None:
    network = network_with("lora")
    teacher = Teacher(network)
    with pytest.raises(Exception, match=r"shape|size|dimension"):
        teacher(images()[..., :2])
    assert network.slot.adapter is network.adapter
