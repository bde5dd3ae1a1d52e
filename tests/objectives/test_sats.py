"""SATS: pseudo-labels, distillation and attention by class against loops, and what each quirk of its code changes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sapwood.errors import ConfigError
from sapwood.functional.pseudo import pseudo_labels
from sapwood.functional.transfer import HeadLayout
from sapwood.objectives.base import Outputs
from sapwood.objectives.sats import SatsConfig, SelfAttentionTransfer
from sapwood.task import Task

from .helpers import AGAIN, FIRST, ROUNDS, SECOND, Batch, case, check_equal, cross_entropy, grown, measured
from .helpers import unbiased_distillation as distilled


def labelled(objective: SelfAttentionTransfer, teacher: Outputs, targets: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """Targets with pseudo-labels (derived by hand in ``test_plop``) and the pictures' shares."""
    logits = teacher.logits.clone()
    logits[:, [channel for channel in task.annotated if channel < 3]] = -math.inf
    assert objective.thresholds is not None
    return pseudo_labels(logits, targets, objective.thresholds)


def transferred(outputs: Outputs, teacher: Outputs, labels: Tensor, mixed_up: bool) -> Tensor:
    """Blocks have 4 x 4 and 2 x 2 patches, their labels are the pixels at the upper left corners."""
    blocks = []
    for ours, theirs, side in zip(outputs.attention, teacher.attention, (4, 2), strict=True):
        difference = ours - theirs
        if mixed_up:
            batch, heads, cells, keys = difference.shape
            difference = difference.reshape(batch, cells, heads, keys).permute(0, 2, 1, 3)
        pictures = []
        for picture, own in zip(difference, labels, strict=True):
            cells = own[:: 8 // side, :: 8 // side].flatten()
            distances = []
            for label in sorted(set(cells.tolist()) - {0, 255}):
                rows = picture[:, cells == label].mean(1)
                distances.append(sum(row.square().sum().sqrt() for row in rows) / len(rows))
            pictures.append(sum(distances) / len(distances) if distances else picture.sum() * 0)
        blocks.append(sum(pictures) / len(pictures))
    return torch.as_tensor(sum(blocks) / 2)


@pytest.mark.parametrize("task", ROUNDS, ids=lambda task: task.name)
@pytest.mark.parametrize(
    "settings",
    [{}, {"adaptive_factor": True, "head_layout": "official_reshape", "strength": 3.0, "ce_denominator": "all_pixels"}],
    ids=["default", "others"],
)
def test_loss_and_gradient(task: Task, settings: dict[str, Any]) -> None:
    given, config = case(task), SatsConfig(**settings)
    objective = measured(SelfAttentionTransfer(config), given, task)
    labels, shares = labelled(objective, given.teacher, given.targets, task)
    entropy = cross_entropy(given.outputs.logits, labels)
    if config.adaptive_factor:
        entropy = entropy * shares[:, None, None]
    entropy = entropy.sum() / (192 if config.ce_denominator == "all_pixels" else int((labels != 255).sum()))
    expected = entropy + config.strength * distilled(given.outputs.logits, given.teacher.logits)
    transfer = transferred(given.outputs, given.teacher, labels, config.head_layout == "official_reshape")
    loss = objective.loss(given.outputs, given.targets, given.teacher, task)
    check_equal(loss, expected + config.attention * transfer, given.inputs)


def test_pseudo_labels_decide_whose_attention_is_held() -> None:
    """Patches labelled background are held as the class that the network before the round sees there."""
    given = case(SECOND)
    targets = torch.zeros_like(given.targets)
    for channel, held in ((2, True), (0, False)):
        teacher = replace(given.teacher, logits=9.0 * F.one_hot(torch.tensor(channel), 3).double()[None, :, None, None])
        teacher = replace(teacher, logits=teacher.logits.expand(3, 3, 8, 8))
        objective = measured(SelfAttentionTransfer(SatsConfig()), given._replace(teacher=teacher), SECOND)
        loss = objective.loss(given.outputs, targets, teacher, SECOND)
        gradient = torch.autograd.grad(loss, given.outputs.attention, allow_unused=True)
        assert all((one != 0).all() if held else not one.any() for one in gradient)


def test_heads_are_mixed_up_by_the_official_code_where_there_are_several() -> None:
    given = case(SECOND)
    losses = {}
    layouts: list[HeadLayout] = ["permuted", "official_reshape"]
    for block, heads in enumerate((2, 1)):
        ours, theirs = (replace(one, attention=(one.attention[block],)) for one in (given.outputs, given.teacher))
        for layout in layouts:
            objective = measured(SelfAttentionTransfer(SatsConfig(head_layout=layout)), given, SECOND)
            losses[heads, layout] = objective.loss(ours, given.targets, theirs, SECOND).item()
    assert losses[1, "permuted"] == losses[1, "official_reshape"]
    assert losses[2, "permuted"] != losses[2, "official_reshape"]


def test_the_factor_is_unused_unless_asked_for() -> None:
    given, found = case(SECOND), {}
    for adaptive in (None, False, True):
        settings: dict[str, Any] = {} if adaptive is None else {"adaptive_factor": adaptive}
        objective = measured(SelfAttentionTransfer(SatsConfig(**settings)), given, SECOND)
        found[adaptive] = objective.loss(given.outputs, given.targets, given.teacher, SECOND).item()
    assert found[None] == found[False] > found[True]


def test_first_round_is_cross_entropy() -> None:
    given = case(FIRST)
    objective = SelfAttentionTransfer(SatsConfig())
    objective.before_task(lambda: [Batch(given.targets)], lambda batch: None, FIRST)
    expected = F.cross_entropy(given.outputs.logits, given.targets.long(), ignore_index=255)
    torch.testing.assert_close(objective.loss(given.outputs, given.targets, None, FIRST), expected)


def test_new_rows_begin_as_in_mib() -> None:
    before, head = grown(SelfAttentionTransfer(SatsConfig()), SECOND)
    assert torch.equal(head.classifier.weight[3:], before.classifier.weight[:1].expand(2, -1))
    lowered = 0.5 - math.log(3)
    assert head.classifier.get_parameter("bias").tolist() == pytest.approx([lowered, -1.0, 2.0, lowered, lowered])
    before, head = grown(SelfAttentionTransfer(SatsConfig()), AGAIN)
    assert torch.equal(head.classifier.get_parameter("bias"), before.classifier.get_parameter("bias"))


def test_bad_settings() -> None:
    given: Any = {
        "strength": -1,
        "alpha": 0,
        "attention": math.nan,
        "head_layout": "mixed",
        "entropy": "max",
        "median": "mean",
        "threshold": -0.1,
    }
    with pytest.raises(ConfigError) as caught:
        SatsConfig(**given)
    for name in given:
        assert f"objective.{name} must be" in str(caught.value)
    assert "permuted or official_reshape" in str(caught.value)
