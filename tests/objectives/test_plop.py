"""PLOP: pseudo-labels and local POD against loops over pixels and strips, and what each quirk of its code changes."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import median
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sapwood.errors import ConfigError
from sapwood.functional.pod import Axis
from sapwood.functional.pseudo import Median
from sapwood.objectives.base import Outputs
from sapwood.objectives.plop import Plop, PlopConfig
from sapwood.task import Task

from .helpers import (
    AGAIN,
    FIRST,
    ROUNDS,
    SECOND,
    Batch,
    Case,
    case,
    check_equal,
    cross_entropy,
    folded,
    grown,
    measured,
    root,
)

PLAIN: dict[str, Any] = {"pod": 0.0, "pod_logits": 0.0}
CODE: dict[str, Any] = {"ce_denominator": "all_pixels", "entropy": "mean", "pod_axis": "width_only"}


def scores(logits: Tensor, task: Task, entropy: str) -> tuple[Tensor, Tensor]:
    """(uncertainty, prediction) of every pixel; a known class that is annotated is no answer."""
    logits = logits.clone()
    logits[:, [c for c in task.annotated if c < 3]] = -math.inf
    p = logits.softmax(1)
    if entropy == "sum":
        value = -(p * p.clamp(min=1e-300).log()).sum(1) / math.log(3)
    else:
        value = -(p * (p + 1e-8).log()).mean(1) / math.log(3 + 1e-8) / math.log(task.known)
    return value, p.argmax(1)


def pseudo_labelled(logits: Tensor, targets: Tensor, task: Task, config: PlopConfig) -> tuple[Tensor, list[float]]:
    score, predicted = scores(logits, task, config.entropy)
    lowest = 0.05 if config.entropy == "sum" else 0.001
    limits = []
    for channel in range(3):
        found = score[(targets == 0) & (predicted == channel)].tolist()
        limits.append(max(median(found), lowest) if found else lowest)
    labels, shares = targets.long().clone(), []
    for picture in range(len(targets)):
        certain = count = 0
        for row, column in (targets[picture] == 0).nonzero().tolist():
            answer = int(predicted[picture, row, column])
            count += 1
            valid = float(score[picture, row, column]) < limits[answer]
            certain += valid
            labels[picture, row, column] = answer if valid else 255
        shares.append(certain / count if count else 1.0)
    return labels, shares


def thresholds(config: PlopConfig, given: Case, task: Task) -> Tensor:
    found = measured(Plop(config), given, task).thresholds
    assert isinstance(found, Tensor)
    return found


def strips(values: Tensor, width_only: bool) -> Tensor:
    """[c, h, w] -> [D]."""
    (_, height, width), found = values.shape, []
    for scale in (1, 2, 4):
        across = width // scale
        down = across if width_only else height // scale
        for i in range(scale):
            for j in range(scale):
                tile = values[:, i * down : (i + 1) * down, j * across : (j + 1) * across]
                found += [tile.mean(2).flatten(), tile.mean(1).flatten()]
    return torch.cat(found)


def expected_loss(outputs: Outputs, targets: Tensor, teacher: Outputs, task: Task, config: PlopConfig) -> Tensor:
    labels, shares = pseudo_labelled(teacher.logits, targets, task, config)
    entropy = cross_entropy(outputs.logits, labels)
    factors = torch.tensor(shares if config.adaptive_factor else [1.0] * len(shares), dtype=torch.float64)
    count = labels.numel() if config.ce_denominator == "all_pixels" else int((labels != 255).sum())
    loss = (entropy * factors[:, None, None]).sum() / count
    ours, theirs = [*outputs.maps], [*teacher.maps]
    assert outputs.grid_logits is not None
    assert teacher.grid_logits is not None
    ours.append(folded(outputs.grid_logits) if config.new_logits == "sum" else outputs.grid_logits[:, :3])
    theirs.append(teacher.grid_logits)
    pod = torch.zeros((), dtype=torch.float64)
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        weight = config.pod_logits if index == len(ours) - 1 else config.pod
        wide = config.pod_axis == "width_only"
        norms = [
            (strips(b.square(), wide) - strips(a.square(), wide)).square().sum().sqrt()
            for a, b in zip(one, other, strict=True)
        ]
        pod = pod + weight * torch.stack(norms).mean()
    return loss + root(task) * pod / len(ours)


@pytest.mark.parametrize("task", ROUNDS, ids=lambda task: task.name)
@pytest.mark.parametrize(
    "settings",
    [{}, {**CODE, "pod": 0.5, "pod_logits": 0.25}, {"adaptive_factor": False, "new_logits": "trim", "pod": 1.0}],
    ids=["default", "code", "others"],
)
def test_loss_and_gradient(task: Task, settings: dict[str, Any]) -> None:
    given, config = case(task, (6, 4)), PlopConfig(**settings)
    objective = measured(Plop(config), given, task)
    loss = objective.loss(given.outputs, given.targets, given.teacher, task)
    check_equal(loss, expected_loss(given.outputs, given.targets, given.teacher, task, config), given.inputs)


def test_first_round_is_cross_entropy() -> None:
    given = case(FIRST)
    objective = Plop(PlopConfig())
    objective.before_task(lambda: [Batch(given.targets)], lambda batch: None, FIRST)
    logits, targets = given.outputs.logits, given.targets.long()
    expected = F.cross_entropy(logits, targets, ignore_index=255)
    torch.testing.assert_close(objective.loss(given.outputs, given.targets, None, FIRST), expected)
    found = Plop(PlopConfig(ce_denominator="all_pixels")).loss(given.outputs, given.targets, None, FIRST)
    torch.testing.assert_close(found, F.cross_entropy(logits, targets, ignore_index=255, reduction="sum") / 192)


def test_the_same_classes_elsewhere_keep_their_labels() -> None:
    """All that is labelled background is: nothing is relabelled, and all of it is certain."""
    given = case(AGAIN)
    objective = measured(Plop(PlopConfig(**PLAIN)), given, AGAIN)
    loss = objective.loss(given.outputs, given.targets, given.teacher, AGAIN)
    targets = given.targets.long()
    torch.testing.assert_close(loss, F.cross_entropy(given.outputs.logits, targets, ignore_index=255))


def test_thresholds_are_measured_in_every_round() -> None:
    given = case(SECOND)
    objective: Any = Plop(PlopConfig())
    with pytest.raises(ValueError, match="before_task"):
        objective.loss(given.outputs, given.targets, given.teacher, SECOND)
    measured(objective, given, SECOND)
    first = objective.thresholds.clone()
    # The same pixels in two batches, or a second time, give the same.
    halves = [0, 1]
    batches = [Batch(given.targets[:1]), Batch(given.targets[1:])]

    def told(batch: Batch) -> Outputs:
        chosen = slice(0, 1) if halves.pop(0) == 0 else slice(1, 3)
        return Outputs(given.teacher.logits[chosen])

    objective.before_task(lambda: batches, told, SECOND)
    assert torch.equal(objective.thresholds, first)
    # A class that is never predicted has the lowest one.
    logits = given.teacher.logits.clone()
    logits[:, 2] = -9.0
    objective.before_task(lambda: [Batch(given.targets)], lambda batch: Outputs(logits), SECOND)
    assert objective.thresholds[2] == torch.tensor(0.05)
    assert objective.thresholds[0] > 0.05


def test_strips_of_the_official_code_leave_out_the_bottom() -> None:
    given = case(SECOND, (6, 4))
    axes: list[tuple[Axis, bool]] = [("width_only", False), ("per_axis", True)]
    for axis, changes in axes:
        objective = Plop(PlopConfig(pod=1.0, pod_axis=axis))
        bottom = [map.detach().clone() for map in given.outputs.maps]
        for map in bottom:
            map[:, :, 4:] += 1
        before = objective.distilled(given.outputs, given.teacher)
        after = objective.distilled(replace(given.outputs, maps=tuple(bottom)), given.teacher)
        assert bool(before != after) is changes
    wide = case(SECOND, (4, 6))
    with pytest.raises(
        ConfigError, match=r"pod_axis=width_only needs maps at least as high as wide.* 4 x 6 .*per_axis"
    ):
        Plop(PlopConfig(pod_axis="width_only")).distilled(wide.outputs, wide.teacher)


@pytest.mark.parametrize(("new_logits", "reached"), [("sum", True), ("trim", False)])
def test_new_logits(new_logits: Any, reached: bool) -> None:
    given = case(SECOND)
    loss = Plop(PlopConfig(new_logits=new_logits)).distilled(given.outputs, given.teacher)
    assert given.outputs.grid_logits is not None
    (gradient,) = torch.autograd.grad(loss, given.outputs.grid_logits)
    assert gradient[:, :3].abs().min() > 0
    assert bool((gradient[:, 3:] != 0).any()) is reached


def test_pictures_that_are_uncertain_count_less() -> None:
    """With the factor each picture's cross entropy is multiplied by its share of certain background pixels."""
    given = case(SECOND)
    loss = {}
    for adaptive in (True, False):
        objective = measured(Plop(PlopConfig(**PLAIN, adaptive_factor=adaptive)), given, SECOND)
        objective.thresholds.zero_()  # nothing is certain
        loss[adaptive] = objective.loss(given.outputs, given.targets, given.teacher, SECOND)
    labels = given.targets.long()
    labels[labels == 0] = 255
    torch.testing.assert_close(loss[False], F.cross_entropy(given.outputs.logits, labels, ignore_index=255))
    # Only the third picture, which has no background, is left.
    last = F.cross_entropy(given.outputs.logits[2:], labels[2:], ignore_index=255, reduction="sum")
    torch.testing.assert_close(loss[True], last / (labels != 255).sum())


def test_uncertainty_of_the_official_code_is_smaller() -> None:
    given = case(SECOND)
    one = thresholds(PlopConfig(threshold=0.0), given, SECOND)
    other = thresholds(PlopConfig(entropy="mean", threshold=0.0), given, SECOND)
    # By K log M; scores are counted with 12 significant bits.
    torch.testing.assert_close(one, other * 3 * math.log(5), rtol=2e-3, atol=0)
    assert bool((thresholds(PlopConfig(entropy="mean", threshold=9.0), given, SECOND) == 9).all())


def test_median_of_the_official_code_is_right_in_its_first_bin_only() -> None:
    given = case(SECOND)
    # With logits this large no score leaves the first bin, 0.01 wide; as drawn, medians lie beyond it.
    ways: list[Median] = ["exact", "official_histogram"]
    for scale, near in ((12.0, True), (1.0, False)):
        teacher = replace(given.teacher, logits=given.teacher.logits * scale)
        found = []
        for how in ways:
            config = PlopConfig(entropy="mean", median=how, threshold=0.0)
            found.append(thresholds(config, given._replace(teacher=teacher), SECOND))
        assert bool(((found[0] - found[1]).abs() < 0.01).all()) is near


@pytest.mark.parametrize("how", ["balanced", "weight_only", "random"])
def test_new_rows(how: Any) -> None:
    before, head = grown(Plop(PlopConfig(head_init=how)), SECOND)
    weight, bias = head.classifier.weight, head.classifier.get_parameter("bias")
    assert torch.equal(weight[:3], before.classifier.weight)
    assert all(torch.equal(weight[row], weight[0]) is (how != "random") for row in (3, 4))
    lowered = 0.5 - math.log(3)
    expected = [lowered, -1.0, 2.0, lowered, lowered] if how == "balanced" else [0.5, -1.0, 2.0, 0.0, 0.0]
    assert bias.tolist() == pytest.approx(expected)


def test_bad_settings() -> None:
    given: Any = {
        "pod": -1,
        "pod_logits": math.inf,
        "pod_axis": "both",
        "new_logits": "max",
        "entropy": "max",
        "median": "mean",
        "threshold": -0.1,
        "head_init": "zero",
        "ce_denominator": 1,
    }
    with pytest.raises(ConfigError) as caught:
        PlopConfig(**given)
    for name in given:
        assert f"objective.{name} must be" in str(caught.value)
    assert "exact or official_histogram" in str(caught.value)
