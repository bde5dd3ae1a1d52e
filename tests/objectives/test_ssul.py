"""SSUL: hand-made unknown and pseudo-labels, the loss against its equation, and what a later round may move."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sapwood.backbones.base import Tokens
from sapwood.errors import ConfigError
from sapwood.heads.dense import DenseConfig, DenseHead
from sapwood.objectives.base import Outputs
from sapwood.objectives.ssul import SsulConfig, UnknownLabel, salient_pixels
from sapwood.task import Task

FIRST = Task(0, "first", (1, 2), (1, 2), 3, seed=0)
SECOND = Task(1, "second", (3, 4), (3, 4), 5, seed=0)
MIXED = Task(1, "mixed", (3, 4), (1, 3, 4), 5, seed=0)  # a known class is annotated again
AGAIN = Task(1, "again", (), (1, 2), 3, seed=0)  # nothing but known classes
ALL: Any = {"ce_denominator": "all_pixels"}


def objective(**settings: Any) -> UnknownLabel:
    return UnknownLabel(SsulConfig(**settings))


def row(*values: float) -> Tensor:
    return torch.tensor([[values]], dtype=torch.float64)


def said(*pixels: dict[int, float], channels: int) -> Tensor:
    """Logits [1, C, 1, W]: those given, -9 elsewhere."""
    logits = torch.full((1, channels, 1, len(pixels)), -9.0, dtype=torch.float64)
    for number, pixel in enumerate(pixels):
        for channel, value in pixel.items():
            logits[0, channel, 0, number] = value
    return logits


def labelled(
    targets: list[int], task: Task, *, teacher: Tensor | None = None, saliency: Tensor | None = None, **settings: Any
) -> list[int]:
    """Targets of one row of pixels once the objective has been over them."""
    outputs = Outputs(torch.zeros(1, task.known + 1, 1, len(targets)), saliency=saliency)
    told = None if teacher is None else Outputs(teacher)
    found: list[int] = objective(**settings).relabelled(outputs, torch.tensor([[targets]]), told, task)[0, 0].tolist()
    return found


def test_unknown_is_what_is_salient_in_the_background() -> None:
    saliency = row(0, 7, 0, 7, 0, 7)
    assert labelled([0, 0, 1, 2, 255, 255], FIRST, saliency=saliency) == [0, 3, 1, 2, 255, 255]
    assert labelled([0, 0, 1, 2, 255, 255], FIRST, unknown="background") == [3, 3, 1, 2, 255, 255]
    with pytest.raises(ValueError, match="saliency"):
        labelled([0], FIRST)
    asked = [objective(unknown="background").needs, objective().needs]
    assert asked == [{"teacher"}, {"teacher", "saliency"}]


def test_pseudo_labels() -> None:
    """Old classes 1 and 2, unknown is the teacher's channel 3; probability 0.7 is the logit log(7 / 3)."""
    edge = math.log(7 / 3)
    teacher = said(
        {1: edge + 1e-6},  # certain enough
        {2: edge - 1e-6},  # not quite
        {2: 3.0, 0: 2.9},  # the background is less likely
        {2: 3.0, 0: 3.1},
        {1: 3.0, 3: 3.1},  # unknown is more likely
        {1: 3.0, 2: 3.5},
        {1: 5.0},  # labelled as a new class
        {1: 5.0},  # ignored
        channels=4,
    )
    for saliency, rest in ((row(*[0] * 8), 0), (row(*[1] * 8), 5)):
        found = labelled([0, 0, 0, 0, 0, 0, 4, 255], SECOND, teacher=teacher, saliency=saliency)
        assert found == [1, rest, 2, rest, rest, 2, 4, 255]
    lower = labelled([0], SECOND, teacher=teacher[..., 1:2], saliency=row(0), pseudo_threshold=0.5)
    assert lower == [2]


def test_annotated_classes_are_no_pseudo_labels() -> None:
    """Class 1 would have been labelled; what comes second is asked then. The new class 3 is not the unknown channel."""
    teacher = said({1: 5.0}, {1: 5.0, 2: 4.0}, {3: 5.0, 2: 4.0}, channels=4)
    for task, expected in ((SECOND, [1, 1, 0]), (MIXED, [0, 2, 0]), (AGAIN, [0, 0, 0])):
        assert labelled([0, 0, 0], task, teacher=teacher, saliency=row(0, 0, 0)) == expected


def test_saliency_of_attention() -> None:
    """Of another size than the targets it is attention: the pixels with the most of each picture's own."""
    maps = torch.tensor([[[5.0, 3.0, 2.0]]])
    for mass, kept in ((0.3, 1), (0.5, 1), (0.51, 2), (0.8, 2), (0.9, 3), (1.0, 3)):
        assert salient_pixels(maps, (2, 3), mass).tolist() == [[[True] * kept + [False] * (3 - kept)] * 2]
    assert not salient_pixels(torch.zeros(1, 1, 3), (2, 3), 0.6).any()
    assert salient_pixels(torch.tensor([[[1.0, 0.0, 0.0]]]), (2, 3), 1.0).sum() == 2
    assert salient_pixels(torch.ones(1, 1, 3), (2, 3), 0.1).all()  # of equals none stands out
    both = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(0))
    alone = salient_pixels(9 * both[1:], (8, 12), 0.6)
    assert torch.equal(salient_pixels(both, (8, 12), 0.6)[1:], alone)
    wide = torch.nn.functional.interpolate(both[1:, None], (8, 12), mode="bilinear")[0, 0].double()
    assert wide[alone[0]].min() >= wide[~alone[0]].max()
    assert wide[alone[0]].sum() / wide.sum() == pytest.approx(0.6, abs=0.02)


def test_saliency_of_files() -> None:
    maps = torch.tensor([[[5.0, 0.0], [0.0, 1.0]]])
    assert salient_pixels(maps, (2, 2), 0.1).tolist() == [[[True, False], [False, True]]]


def case(channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, channels + 1, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = 2 * torch.randn(2, 4, 4, 5, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, channels + 1, (2, 4, 5), generator=generator)
    saliency = torch.randint(0, 2, (2, 4, 5), generator=generator).double()
    return logits, teacher, torch.where(targets == channels, 255, targets), saliency


def wanted_label(target: int, salient: bool, told: list[float] | None, task: Task, unknown: int) -> int:
    """The rule for one pixel, in the words of the paper's code."""
    if target != 0:
        return target
    if told is not None:
        told = [
            -math.inf if channel in task.annotated and channel < len(told) - 1 else x for channel, x in enumerate(told)
        ]
        best = max(range(len(told)), key=lambda channel: told[channel])
        if 0 < best < len(told) - 1 and 1 / (1 + math.exp(-told[best])) >= 0.7:
            return best
    return unknown if salient else 0


@pytest.mark.parametrize("task", [FIRST, SECOND, MIXED, AGAIN], ids=lambda task: task.name)
@pytest.mark.parametrize("settings", [{}, ALL, {"unknown": "background"}], ids=["", "all_pixels", "ade"])
def test_loss_and_gradient(task: Task, settings: dict[str, Any]) -> None:
    logits, teacher, targets, saliency = case(task.known)
    told = None if task.index == 0 else Outputs(teacher)
    outputs = Outputs(logits, saliency=saliency)
    loss = objective(**settings).loss(outputs, targets.to(torch.uint8), told, task)
    total, valid, p = torch.zeros((), dtype=torch.float64), 0, 1 / (1 + torch.exp(-logits))
    for b in range(2):
        for y in range(4):
            for x in range(5):
                salient = bool(saliency[b, y, x]) or "unknown" in settings
                mine = None if told is None else teacher[b, :, y, x].tolist()
                label = wanted_label(int(targets[b, y, x]), salient, mine, task, task.known)
                if label == 255:
                    continue
                valid += 1
                for channel in range(task.known + 1):
                    q = p[b, channel, y, x]
                    total = total - (q if channel == label else 1 - q).log()
    expected = total / (targets.numel() if settings == ALL else valid)
    torch.testing.assert_close(loss, expected)
    (found,), (wanted,) = torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits)
    torch.testing.assert_close(found, wanted)
    assert found.permute(0, 2, 3, 1)[targets == 255].abs().max() == 0
    again = objective(**settings)
    assert torch.autograd.gradcheck(lambda x: again.loss(replace(outputs, logits=x), targets, told, task), (logits,))


def test_nothing_but_ignored_pixels() -> None:
    logits = torch.zeros(1, 4, 2, 2, requires_grad=True)
    loss = objective().loss(Outputs(logits, saliency=torch.ones(1, 2, 2)), torch.full((1, 2, 2), 255), None, FIRST)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def head_with(stem: str) -> DenseHead:
    head = DenseHead(DenseConfig(**UnknownLabel.head, stem=stem), dim=6)  # type: ignore[arg-type]
    head.grow(3, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        for buffer in head.buffers():
            buffer += 0.1 * torch.rand(buffer.shape, generator=generator)
    return head


def tokens() -> Tokens:
    patches = torch.randn(2, 12, 6, generator=torch.Generator().manual_seed(3))
    return Tokens(patches.mean(1), patches, (3, 4))


def begun(ours: UnknownLabel, head: DenseHead, task: Task) -> None:
    head.grow(len(task.new), torch.Generator().manual_seed(task.index))
    head.requires_grad_(True)
    ours.initialise(head, task)


def stepped(ours: UnknownLabel, head: DenseHead, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What one step of training adds to each tensor of the head."""
    before = {name: value.detach().clone() for name, value in head.state_dict().items()}
    with head.training_mode(True):
        logits = head(tokens())
        optimizer.zero_grad()
        (logits.square().mean() + logits.mean()).backward()
        with ours.stepping(head, SECOND):
            optimizer.step()
    return {name: value.detach() - before[name] for name, value in head.state_dict().items()}


def optimizers(head: DenseHead, rate: float) -> Iterator[torch.optim.Optimizer]:
    parameters = [one for one in head.parameters() if one.requires_grad]
    yield torch.optim.AdamW(parameters, rate, weight_decay=0.0)
    yield torch.optim.SGD(parameters, rate, momentum=0.9, nesterov=True)


@pytest.mark.parametrize("stem", ["shared", "per_task"])
def test_new_rows_begin_as_the_unknown_class(stem: str) -> None:
    head, ours = head_with(stem), objective()
    before = head(tokens())
    begun(ours, head, SECOND)
    after = head(tokens())
    torch.testing.assert_close(after[:, [0, 1, 2, 5]], before)
    torch.testing.assert_close(after[:, 3:5], before[:, 3:].expand(-1, 2, -1, -1))
    assert torch.equal(head.classifier.weight[4], head.unknown.weight[0])  # type: ignore[union-attr]
    if stem == "per_task":  # a copy, not the same
        assert head.stem_of(3) is head.stem_of(4) is not head.stem_of(5)


@pytest.mark.parametrize("stem", ["shared", "per_task"])
@pytest.mark.parametrize("kind", [0, 1], ids=["adamw", "sgd"])
@pytest.mark.parametrize("task", [SECOND, MIXED], ids=lambda task: task.name)
def test_what_a_later_round_moves(stem: str, kind: int, task: Task) -> None:
    """Bit for bit nothing but new, unknown and background; a background that is not slowed down tells its rate."""
    moves = {}
    for rate in (1e-4, 1.0, 0.0):
        head, ours = head_with(stem), objective(background_rate=rate)
        assert ours.stays(task)
        begun(ours, head, task)
        moves[rate] = stepped(ours, head, list(optimizers(head, 0.1))[kind])
    for name, moved in moves[1e-4].items():
        if name in ("classifier.weight", "classifier.bias"):
            assert not moved[1:3].any()
            assert moved[3:].abs().min() > 1e-5
            torch.testing.assert_close(moved[0], 1e-4 * moves[1.0][name][0], rtol=1e-2, atol=3e-8)
            assert moves[1.0][name][0].abs().min() > 1e-5
            assert not moves[0.0][name][0].any()
        elif name == "stems.background.weight":
            torch.testing.assert_close(moved, 1e-4 * moves[1.0][name], rtol=1e-2, atol=3e-8)
            assert moves[1.0][name].any()
            assert not moves[0.0][name].any()
        elif name.startswith("unknown.") or name in ("stems.unknown.weight", "stems.group2.weight"):
            assert moved.any()
        else:
            assert not moved.any(), name
        assert torch.equal(moved[1:], moves[1.0][name][1:]) or name == "stems.background.weight"


@pytest.mark.parametrize("stem", ["shared", "per_task"])
def test_rounds_in_which_everything_moves(stem: str) -> None:
    """The first, one without new classes after one that stood still, and all with ``freeze_after_first`` off."""
    head, ours = head_with(stem), objective()
    again = replace(AGAIN, index=2, annotated=(1, 2, 3, 4), known=5)
    for task in (FIRST, SECOND, again):
        begun(ours, head, replace(task, new=() if task is FIRST else task.new))
        stays = ours.stays(task)
        assert stays is (task is SECOND)
        moved = stepped(ours, head, next(optimizers(head, 0.1)))
        assert bool(moved["classifier.weight"][1:3].any()) is not stays
        assert moved["classifier.weight"][[0, -1]].any()
        for name, parameter in head.named_parameters():
            if name.startswith("decoder"):
                assert parameter.requires_grad is not stays
                assert bool(moved[name].any()) is not stays
        if not stays:
            assert all(parameter.requires_grad for parameter in head.parameters())
    head, ours = head_with(stem), objective(freeze_after_first=False)
    begun(ours, head, SECOND)
    assert not ours.stays(SECOND)
    assert all(change.any() for name, change in stepped(ours, head, next(optimizers(head, 0.1))).items())


def test_a_frozen_stem_has_frozen_statistics() -> None:
    head, ours = head_with("per_task"), objective()
    begun(ours, head, SECOND)
    moved = stepped(ours, head, next(optimizers(head, 0.1)))
    assert not any(change.any() for name, change in moved.items() if ".norm." in name)
    begun(ours, head, replace(AGAIN, index=2, annotated=(1, 2, 3, 4), known=5))
    moved = stepped(ours, head, next(optimizers(head, 0.1)))
    assert all(change.any() for name, change in moved.items() if ".norm." in name)


def test_settings() -> None:
    expected: Any = ("valid", "salient", 0.6, 0.7, True, 1e-4)
    assert SsulConfig() == SsulConfig(*expected)
    given: Any = {"unknown": "all", "saliency_mass": 0, "pseudo_threshold": 1.1, "freeze_after_first": 1}
    given |= {"background_rate": -1, "ce_denominator": "none"}
    with pytest.raises(ConfigError) as caught:
        SsulConfig(**given)
    for name in given:
        assert f"objective.{name} must be" in str(caught.value)
