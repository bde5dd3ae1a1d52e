"""EWC against a derivation of its own: gradients of one picture at a time, written out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sapwood.errors import ConfigError
from sapwood.learner import Learner
from sapwood.objectives.base import Outputs
from sapwood.objectives.ewc import ElasticWeightConsolidation, EwcConfig, EwcPixelConfig
from sapwood.task import Task

FIRST = Task(0, "first", (0, 1), (0, 1), 2, seed=0)
SECOND = Task(1, "second", (2,), (0, 2), 3, seed=0)


class Pictures(NamedTuple):
    x: Tensor
    targets: Tensor


def toy(classes: int, seed: int = 0) -> tuple[dict[str, nn.Parameter], Any]:
    """logits = tanh(x A) W^T + b; A stands for an adapter, W and b for a head that grows."""
    generator = torch.Generator().manual_seed(seed)
    parameters = {
        "adapter.A": nn.Parameter(torch.randn(4, 3, generator=generator, dtype=torch.float64)),
        "head.W": nn.Parameter(torch.randn(classes, 3, generator=generator, dtype=torch.float64)),
        "head.b": nn.Parameter(torch.randn(classes, generator=generator, dtype=torch.float64)),
    }

    def forward(batch: Pictures) -> Tensor:
        return torch.tanh(batch.x @ parameters["adapter.A"]) @ parameters["head.W"].T + parameters["head.b"]

    return parameters, forward


def pictures(labels: list[int], seed: int = 1) -> Pictures:
    generator = torch.Generator().manual_seed(seed)
    return Pictures(torch.randn(len(labels), 4, generator=generator, dtype=torch.float64), torch.tensor(labels))


def in_batches(data: Pictures) -> Any:
    def batches(size: int) -> Iterator[Pictures]:
        for x, targets in zip(data.x.split(size), data.targets.split(size), strict=True):
            yield Pictures(x, targets)

    return batches


def end_round(objective: ElasticWeightConsolidation, parameters: Any, batches: Any, forward: Any, task: Task) -> None:
    objective.after_task(parameters, batches, forward, task)
    objective.settle({**objective.anchor, **parameters})  # with those that another round trained and this one did not


def gradients_by_hand(parameters: dict[str, nn.Parameter], data: Pictures, scope: list[int]) -> dict[str, Tensor]:
    """Gradient of -log softmax of each picture by the chain rule, stacked [n, ...]; no autograd."""
    A, W, b = (parameters[name].detach() for name in ("adapter.A", "head.W", "head.b"))
    found: dict[str, list[Tensor]] = {name: [] for name in parameters}
    for x, target in zip(data.x, data.targets.tolist(), strict=True):
        hidden = torch.tanh(x @ A)
        logits = W @ hidden + b
        error = torch.zeros_like(b)
        share = torch.exp(logits[scope] - logits[scope].max())
        error[scope] = share / share.sum()
        error[target] -= 1
        found["head.b"].append(error)
        found["head.W"].append(error[:, None] * hidden[None])
        found["adapter.A"].append(x[:, None] * ((error @ W) * (1 - hidden**2))[None])
    return {name: torch.stack(rows) for name, rows in found.items()}


def test_fisher_is_the_mean_squared_gradient_of_single_pictures() -> None:
    parameters, forward = toy(2)
    data = pictures([0, 1, 1, 0, 1])
    objective = ElasticWeightConsolidation(EwcConfig())
    end_round(objective, parameters, in_batches(data), forward, FIRST)
    for name, rows in gradients_by_hand(parameters, data, [0, 1]).items():
        torch.testing.assert_close(objective.fisher[name], rows.square().mean(0))
        assert torch.equal(objective.anchor[name], parameters[name])
        assert not objective.anchor[name].requires_grad
        assert parameters[name].grad is None  # measuring leaves nothing behind for the next step


def test_fisher_of_batches_squares_their_mean_gradient_and_is_clipped() -> None:
    parameters, forward = toy(2)
    data = pictures([0, 1, 1, 0, 1])
    objective = ElasticWeightConsolidation(EwcConfig(fisher_batch=2, fisher_pictures=4, fisher_clip=0.01))
    end_round(objective, parameters, in_batches(data), forward, FIRST)
    clipped = 0
    for name, rows in gradients_by_hand(parameters, data, [0, 1]).items():
        squares = [rows[0:2].mean(0).square(), rows[2:4].mean(0).square()]  # the fifth picture is beyond the limit
        expected = torch.stack(squares).mean(0)
        clipped += int((expected > 0.01).sum())
        torch.testing.assert_close(objective.fisher[name], expected.clamp(max=0.01))
    assert clipped > 0


def test_penalty_value_and_gradient() -> None:
    parameters, forward = toy(2)
    objective = ElasticWeightConsolidation(EwcConfig(strength=7.0))
    assert objective.penalty(parameters) is None
    end_round(objective, parameters, in_batches(pictures([0, 1, 1])), forward, FIRST)
    grown, _ = toy(3, seed=9)
    value = objective.penalty(grown)
    assert value is not None
    expected = 0.0
    for name, anchor in objective.anchor.items():
        now = grown[name].detach()[:2] if name.startswith("head") else grown[name].detach()  # the new row is free
        expected += 7.0 / 2 * (objective.fisher[name] * (now - anchor) ** 2).sum().item()
    assert value.item() == pytest.approx(expected, rel=1e-12)
    value.backward()
    assert torch.equal(grown["head.W"].grad[2], torch.zeros(3, dtype=torch.float64))  # type: ignore[index]
    expected_gradient = (
        7.0 * objective.fisher["adapter.A"] * (grown["adapter.A"].detach() - objective.anchor["adapter.A"])
    )
    torch.testing.assert_close(grown["adapter.A"].grad, expected_gradient)


def test_rounds_are_merged_by_their_share_of_classes() -> None:
    objective = ElasticWeightConsolidation(EwcConfig())
    old, old_forward = toy(2)
    end_round(objective, old, in_batches(pictures([0, 1])), old_forward, FIRST)
    before = {name: tensor.clone() for name, tensor in objective.fisher.items()}
    new, forward = toy(3, seed=4)
    data = pictures([0, 2, 2, 0], seed=5)
    end_round(objective, new, in_batches(data), forward, SECOND)
    rows = gradients_by_hand(new, data, [0, 2])  # classes annotated in this round
    for name, gradient in rows.items():
        fresh = gradient.square().mean(0)
        expected = fresh.clone()
        part = slice(None) if name == "adapter.A" else slice(2)
        expected[part] = 2 / 3 * before[name] + 1 / 3 * fresh[part]
        torch.testing.assert_close(objective.fisher[name], expected)
        assert torch.equal(objective.anchor[name], new[name])


def test_parameters_that_stay_keep_their_anchor() -> None:
    """After a first round that adapts, later rounds may train the head alone."""
    objective = ElasticWeightConsolidation(EwcConfig(strength=2.0))
    old, old_forward = toy(2)
    end_round(objective, old, in_batches(pictures([0, 1])), old_forward, FIRST)
    kept = objective.fisher["adapter.A"].clone(), objective.anchor["adapter.A"].clone()
    new, forward = toy(3, seed=4)
    head = {name: parameter for name, parameter in new.items() if name.startswith("head")}
    value = objective.penalty(head)
    assert value is not None
    assert torch.autograd.grad(value, list(new.values()), allow_unused=True)[0] is None
    end_round(objective, head, in_batches(pictures([0, 2])), forward, SECOND)
    assert torch.equal(objective.fisher["adapter.A"], kept[0])
    assert torch.equal(objective.anchor["adapter.A"], kept[1])


def test_state_comes_back() -> None:
    objective = ElasticWeightConsolidation(EwcConfig())
    parameters, forward = toy(2)
    assert objective.state() == ({}, {"classes": 0})
    end_round(objective, parameters, in_batches(pictures([0, 1, 1])), forward, FIRST)
    tensors, meta = objective.state()
    assert len(tensors) == 2 * len(parameters)
    other = ElasticWeightConsolidation(EwcConfig())
    other.load((tensors, meta))
    moved, _ = toy(2, seed=3)
    assert other.classes == 2
    assert torch.equal(other.penalty(moved), objective.penalty(moved))  # type: ignore[arg-type]


def test_loss_is_cross_entropy_over_the_scope() -> None:
    logits = torch.tensor([[1.0, 5.0, 2.0], [0.0, -3.0, 4.0]])
    targets = torch.tensor([0, 2])
    own = ElasticWeightConsolidation(EwcConfig()).loss(Outputs(logits), targets, None, SECOND)
    seen = ElasticWeightConsolidation(EwcConfig(scope="seen")).loss(Outputs(logits), targets, None, SECOND)
    expected_own = -torch.log(
        torch.stack([1 / (1 + torch.exp(torch.tensor(1.0))), 1 / (1 + torch.exp(torch.tensor(-4.0)))])
    ).mean()
    expected_seen = -torch.log(torch.stack([logits[0].softmax(0)[0], logits[1].softmax(0)[2]])).mean()
    torch.testing.assert_close(own, expected_own)
    torch.testing.assert_close(seen, expected_seen)


@pytest.mark.parametrize("denominator", ["valid", "all_pixels"])
def test_fisher_of_masks_squares_the_gradient_of_a_picture(denominator: Any) -> None:
    """A 1x1 classifier's gradient by the chain rule: (softmax - target) at pixels that count, times the features."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64)
    weight = nn.Parameter(torch.randn(3, 2, generator=generator, dtype=torch.float64))
    targets = torch.randint(0, 4, (3, 4, 4), generator=generator)
    targets = torch.where(targets == 3, 255, targets)

    def batches(size: int) -> Iterator[Pictures]:
        assert size == 1
        for x, target in zip(features.split(1), targets.split(1), strict=True):
            yield Pictures(x, target.to(torch.uint8))

    def forward(batch: Pictures) -> Tensor:
        return torch.einsum("kd,bdhw->bkhw", weight, batch.x)

    assert ElasticWeightConsolidation.config_type("segmentation") is EwcPixelConfig
    objective = ElasticWeightConsolidation(EwcPixelConfig(ce_denominator=denominator))
    end_round(objective, {"head.W": weight}, batches, forward, Task(0, "first", (1, 2), (1, 2), 3, seed=0))
    squares = []
    for x, target in zip(features, targets, strict=True):
        counted = target < 3
        logits = weight.detach() @ x[:, counted]
        error = torch.exp(logits) / torch.exp(logits).sum(0) - (torch.arange(3)[:, None] == target[counted]).double()
        squares.append((error @ x[:, counted].T / (counted.sum() if denominator == "valid" else 16)).square())
    torch.testing.assert_close(objective.fisher["head.W"], torch.stack(squares).mean(0))


def test_all_faults_of_the_settings_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        EwcConfig(strength=-1, fisher_batch=0, fisher_clip=0.0, fisher_pictures=0)
    for word in ("strength", "fisher_batch", "fisher_clip", "fisher_pictures"):
        assert f"objective.{word} must be" in str(caught.value)


def test_pixel_settings_are_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"ce_denominator must be .*strength must be >= 0"):
        EwcPixelConfig(strength=-1, ce_denominator="some")  # type: ignore[arg-type]


@pytest.mark.parametrize("align", ["none", "gaussian"])
def test_the_anchor_is_what_a_round_of_pictures_leaves(
    align: str, picture_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """The head's rows as they are aligned after the steps."""
    learner = Learner.create(
        tmp_path / "state",
        backbone="random:dinov2-tiny",
        method="lora+ewc",
        image_size=28,
        settings={"head": {"align": align}, "training": {"epochs": 1, "precision": "fp32"}},
    )
    for names in (["ant", "bee"], ["cat", "dog"]):
        learner.learn(picture_folder(names, 6, name=names[0]))
        assert anchors(learner).keys() >= {"head.classifier.weight", "head.classifier.bias"}
        check_anchored(learner)


@pytest.mark.parametrize("start", ["official", "preserve"])
def test_the_anchor_is_what_a_round_of_masks_leaves(
    start: str, mask_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Branches as they merged; one that is dropped, and made anew in the next round, is not anchored."""
    learner = Learner.create(
        tmp_path / "state",
        backbone="random:dinov2-tiny",
        method="lora+ewc",
        kind="segmentation",
        image_size=(28, 42),
        settings={
            "head": {"branches": "parallel", "branch_start": start},
            "training": {"epochs": 1, "precision": "fp32"},
        },
    )
    for names in (["ant"], ["bee"]):
        learner.learn(mask_folder(names, 3, name=names[0]))
        check_anchored(learner)
        assert any(".new." in name for name in anchors(learner)) is (start == "official")


def anchors(learner: Learner) -> dict[str, Tensor]:
    kept = load_file(learner.state.path / learner.record["tasks"][-1]["folder"] / "objective.safetensors")
    return {name.removeprefix("anchor."): value for name, value in kept.items() if name.startswith("anchor.")}


def check_anchored(learner: Learner) -> None:
    now = learner.network.state_dict()
    for name, value in anchors(learner).items():
        assert torch.equal(value, now[name]), name
