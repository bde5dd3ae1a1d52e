"""RCIL: its losses against loops over windows, which map has which weight, and how new rows begin."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sapwood.errors import ConfigError
from sapwood.objectives.base import Outputs
from sapwood.objectives.rcil import RcilConfig, RepresentationCompensation
from sapwood.task import Task

from .helpers import AGAIN, FIRST, ROUNDS, SECOND, case, check_equal, cross_entropy, folded, grown, root
from .helpers import unbiased_distillation as distilled

ALONE: dict[str, Any] = {"spatial": 0.0, "spatial_last": 0.0, "channel": 0.0, "channel_last": 0.0}


def over_space(d: Tensor) -> Tensor:
    """Of a picture's map [c, h, w]: the mean over the windows' sizes of the norm of all windows' averages."""
    height, width = d.shape[1:]
    norms = []
    for k in (4, 8, 12, 16, 20, 24):
        windows = [
            d[:, max(top, 0) : max(top + k, 0), max(left, 0) : max(left + k, 0)].sum((1, 2)) / k**2
            for top in range(-(k // 2), height + k // 2 - k + 1)
            for left in range(-(k // 2), width + k // 2 - k + 1)
        ]
        norms.append(torch.cat(windows).norm())
    return torch.stack(norms).mean()


def over_channels(d: Tensor) -> Tensor:
    """Of a picture's map [c, h, w]: the norm of the averages of three neighbouring channels."""
    last = len(d)
    return torch.stack([d[max(c - 1, 0) : min(c + 2, last)].sum(0) / 3 for c in range(last)]).norm()


def expected_loss(outputs: Outputs, targets: Tensor, teacher: Outputs, task: Task, config: RcilConfig) -> Tensor:
    old = tuple(channel for channel in range(task.known) if channel not in task.annotated)
    entropy = cross_entropy(outputs.logits, targets, old).sum()
    count = targets.numel() if config.ce_denominator == "all_pixels" else int((targets != 255).sum())
    loss = entropy / count + config.strength * distilled(outputs.logits, teacher.logits)
    assert outputs.grid_logits is not None
    assert teacher.grid_logits is not None
    ours = [*outputs.maps, folded(outputs.grid_logits)]
    theirs = [*teacher.maps, teacher.grid_logits]
    spatial = channel = torch.zeros((), dtype=torch.float64)
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        pictures = list(other.square() - one.square())
        last = index == 3
        norm = torch.stack([over_space(d) for d in pictures]).mean()
        spatial = spatial + (config.spatial_last if last else config.spatial) * norm
        if not last:
            norm = torch.stack([over_channels(d) for d in pictures]).mean()
            channel = channel + (config.channel_last if index == 2 else config.channel) * norm
    return loss + root(task) * (spatial / 4 + channel / 3)


@pytest.mark.parametrize("task", ROUNDS, ids=lambda task: task.name)
@pytest.mark.parametrize(
    "settings",
    [{}, {"spatial": 2.0, "spatial_last": 0.5, "channel": 3.0, "channel_last": 0.7, "ce_denominator": "all_pixels"}],
    ids=["default", "others"],
)
def test_loss_and_gradient(task: Task, settings: dict[str, Any]) -> None:
    given, config = case(task, (3, 4)), RcilConfig(**settings)
    loss = RepresentationCompensation(config).loss(given.outputs, given.targets, given.teacher, task)
    check_equal(loss, expected_loss(given.outputs, given.targets, given.teacher, task, config), given.inputs)


@pytest.mark.parametrize(
    ("weight", "moves"),
    [
        ("spatial", [True, True, True, False]),
        ("spatial_last", [False, False, False, True]),
        ("channel", [True, True, False, False]),
        ("channel_last", [False, False, True, False]),
    ],
)
def test_each_weight_has_its_maps(weight: str, moves: list[bool]) -> None:
    given = case(SECOND)
    objective = RepresentationCompensation(RcilConfig(**{**ALONE, weight: 1.0}))
    inputs = given.inputs[2:5] + given.inputs[1:2]  # the maps and, last, the logits
    gradients = torch.autograd.grad(objective.distilled(given.outputs, given.teacher), inputs)
    assert [bool((gradient != 0).any()) for gradient in gradients] == moves


def test_first_round_is_cross_entropy() -> None:
    given = case(FIRST)
    logits, targets = given.outputs.logits, given.targets.long()
    found = RepresentationCompensation(RcilConfig()).loss(given.outputs, given.targets, None, FIRST)
    torch.testing.assert_close(found, F.cross_entropy(logits, targets, ignore_index=255))
    config = RcilConfig(ce_denominator="all_pixels")
    found = RepresentationCompensation(config).loss(given.outputs, given.targets, None, FIRST)
    torch.testing.assert_close(found, F.cross_entropy(logits, targets, ignore_index=255, reduction="sum") / 192)


def test_at_the_start_nothing_pulls() -> None:
    """A student that says what its teacher says has no pooled distillation, and no NaN in its gradient."""
    given = case(AGAIN)
    objective = RepresentationCompensation(RcilConfig())
    loss = objective.distilled(given.outputs, given.outputs)
    assert loss == 0
    for gradient in torch.autograd.grad(loss, given.inputs[1:5]):
        assert not gradient.any()


def test_new_rows_have_the_weight_of_the_background() -> None:
    before, head = grown(RepresentationCompensation(RcilConfig()), SECOND)
    assert torch.equal(head.classifier.weight[3:], before.classifier.weight[:1].expand(2, -1))
    assert head.classifier.get_parameter("bias").tolist() == [0.5, -1.0, 2.0, 0.0, 0.0]
    _, head = grown(RepresentationCompensation(RcilConfig(head_init="balanced")), SECOND)
    bias = head.classifier.get_parameter("bias").tolist()
    assert bias[0] == bias[3] == bias[4] < 0.5
    before, head = grown(RepresentationCompensation(RcilConfig()), AGAIN)
    assert torch.equal(head.classifier.weight, before.classifier.weight)


def test_what_it_asks_for() -> None:
    assert RepresentationCompensation.head == {"branches": "parallel"}
    assert RepresentationCompensation.needs == {"teacher", "maps", "grid"}
    given = case(SECOND)
    with pytest.raises(ValueError, match="feature maps"):
        RepresentationCompensation(RcilConfig()).loss(
            Outputs(given.outputs.logits), given.targets, given.teacher, SECOND
        )


def test_bad_settings() -> None:
    given: Any = {"strength": -1, "alpha": 0, "head_init": "zero", **dict.fromkeys(ALONE, -1.0)}
    with pytest.raises(ConfigError) as caught:
        RcilConfig(**given)
    for name in given:
        assert f"objective.{name} must be" in str(caught.value)
    assert "balanced, weight_only or random" in str(caught.value)
