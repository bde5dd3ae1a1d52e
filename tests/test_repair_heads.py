"""Heads whose classes become others and whose pictures are taken back: against heads that never saw them."""

from __future__ import annotations

import pytest
import torch

from sapwood.backbones.base import Tokens
from sapwood.functional.openset import shrunk
from sapwood.functional.statistics import unpack_triangle
from sapwood.heads import HEADS, DenseHead, Features
from sapwood.heads.base import PooledHead
from sapwood.heads.class_gaussians import ClassGaussians
from sapwood.heads.dense import DenseConfig
from sapwood.repair_sums import parameter_names, regrouped

DIM = 6
SUMS = [("prototype", {}), ("ridge", {"strength": 0.3}), ("ridge", {"strength": 0.3, "projection": 9})]
sums = pytest.mark.parametrize(("name", "settings"), SUMS, ids=["prototype", "ridge", "projected"])


def draw(labels: list[int], seed: int = 0) -> Features:
    rng = torch.Generator().manual_seed(seed)
    y = torch.tensor(labels)
    return Features(torch.randn(len(y), DIM, generator=rng) + 2 * torch.eye(DIM)[y], y)


def fitted(name: str, settings: dict, data: Features, classes: int) -> PooledHead:
    head = HEADS[name](HEADS[name].Config(**settings), DIM)
    assert isinstance(head, PooledHead)
    head.grow(classes, torch.Generator().manual_seed(1))
    # The same projection however many pictures; they go into the sums afterwards.
    head.fit(data, None, torch.Generator().manual_seed(2))
    head.learn_known(data, None, stays=True)
    return head


def numbers(head: PooledHead) -> dict[str, torch.Tensor]:
    """What follows from the pictures, in double precision."""
    found = {"logits": head.logits(torch.eye(DIM)).double(), "gram": head.sums.gram, "total": head.sums.total}
    found["count"] = head.sums.count.double()
    if hasattr(head, "solve"):
        found["solution"] = head.solve()
    if hasattr(head, "mean"):
        found["mean"] = head.mean
    return found


def assert_equal(one: PooledHead, other: PooledHead) -> None:
    mine, theirs = numbers(one), numbers(other)
    for name, value in mine.items():
        tolerance = 1e-6 if name == "logits" else 1e-8  # logits are float32
        torch.testing.assert_close(value, theirs[name], atol=tolerance, rtol=0, msg=lambda text, n=name: f"{n}: {text}")


@sums
def test_a_class_that_is_forgotten_was_never_there(name, settings):
    data = draw([0, 1, 2] * 7)
    head = fitted(name, settings, data, 3)
    gone = data.y == 1
    head.forget(Features(data.x[gone], data.y[gone]))
    head.regroup([[0], [2]])
    head.settle()
    kept = Features(data.x[~gone], data.y[~gone] // 2)
    assert_equal(head, fitted(name, settings, kept, 2))
    assert len(head.known.distances) == len(head.known.labels) == 14
    again = HEADS[name](HEADS[name].Config(**settings), DIM)
    again.load(*head.state())
    assert_equal(again, head)


@sums
def test_two_classes_that_become_one_always_were(name, settings):
    data = draw([0, 1, 2, 2] * 5)
    head = fitted(name, settings, data, 3)
    head.regroup([[1], [2, 0]])
    head.settle()
    assert_equal(head, fitted(name, settings, Features(data.x, torch.tensor([1, 0, 1])[data.y]), 2))


@sums
def test_another_label_was_always_there(name, settings):
    data = draw([0, 1, 2] * 6)
    head = fitted(name, settings, data, 3)
    wrong = torch.tensor([0, 3, 6])
    head.forget(Features(data.x[wrong], data.y[wrong]))
    head.observe(Features(data.x[wrong], data.y[wrong] + 2))
    head.settle()
    right = data.y.clone()
    right[wrong] = 2
    assert_equal(head, fitted(name, settings, Features(data.x, right), 3))


@sums
def test_nothing_is_left_of_a_class_that_lost_its_pictures(name, settings):
    data = draw([0, 1, 2] * 6)
    head = fitted(name, settings, data, 3)
    lost = Features(data.x[data.y == 1], data.y[data.y == 1])
    head.forget(lost)
    head.settle()
    logits = head.logits(torch.randn(20, DIM, generator=torch.Generator().manual_seed(4)))
    assert (logits[:, 1] == (-1 if name == "prototype" else 0)).all()
    head.clear()
    head.observe(data)
    head.settle()
    assert_equal(head, fitted(name, settings, data, 3))


@pytest.mark.parametrize("shared", [False, True])
def test_gaussians_of_two_classes_are_those_of_their_pictures(shared):
    data = draw([0, 1, 2, 1] * 8)
    parts, whole = (ClassGaussians(DIM, shared) for _ in range(2))
    parts.grow(3)
    parts.observe(data)
    parts.regroup([[0], [2, 1]])
    whole.grow(2)
    whole.observe(Features(data.x, (data.y > 0).long()))
    assert parts.count.tolist() == whole.count.tolist()
    torch.testing.assert_close(parts.mean, whole.mean)
    torch.testing.assert_close(parts.covariance, whole.covariance)
    kept = parts.mean[1:].clone(), parts.covariance[-1:].clone()
    parts.regroup([[1]])
    assert torch.equal(parts.mean, kept[0])
    assert torch.equal(parts.covariance, kept[1])


@pytest.mark.parametrize("stem", ["shared", "per_task"])
def test_a_channel_goes_and_the_others_draw_what_they_drew(stem):
    head, generator = DenseHead(DenseConfig(stem=stem, background="unknown"), DIM), torch.Generator().manual_seed(0)
    for count in (3, 1, 2):  # background and two classes, one, two
        head.grow(count, generator)
    head.requires_grad_(False)
    patches = torch.randn(2, 4, DIM, generator=generator)
    tokens = Tokens(patches.mean(1), patches, (2, 2))
    before = head(tokens)
    names = parameter_names(head, lambda: head.regroup([[0], [1], [4], [5]]))
    torch.testing.assert_close(head(tokens), before[:, [0, 1, 4, 5, 6]])
    if stem == "per_task":
        assert head.groups == [1, 1, 2]
        assert names["head.stems.group3.weight"] == "head.stems.group2.weight"
        assert "head.stems.group2.weight" not in names
    again = DenseHead(head.config, DIM)
    again.load(*head.state())
    torch.testing.assert_close(again(tokens), head(tokens))
    head.grow(1, generator)
    assert head(tokens).shape[1] == 6


def test_an_anchor_keeps_the_rows_of_the_classes_that_stay():
    kept = {
        "fisher.head.classifier.weight": torch.arange(6.0).reshape(3, 2),
        "fisher.adapter.down.x": torch.ones(2),
        "anchor.head.stems.group1.weight": torch.ones(1),
        "anchor.head.stems.group2.weight": 2 * torch.ones(1),
    }
    names = {f"head.{each}": f"head.{each}" for each in ("classifier.weight", "stems.group1.weight")}
    names["head.stems.group2.weight"] = names.pop("head.stems.group1.weight")
    # Four classes now, three when it was anchored.
    tensors, meta = regrouped((kept, {"classes": 3}), [[0], [2], [3]], names)
    assert tensors["fisher.head.classifier.weight"].tolist() == [[0, 1], [4, 5]]
    assert tensors["anchor.head.stems.group1.weight"].item() == 2
    assert set(tensors) == {
        "fisher.head.classifier.weight",
        "fisher.adapter.down.x",
        "anchor.head.stems.group1.weight",
    }
    assert meta == {"classes": 2}


@pytest.mark.parametrize("covariance", ["class", "shared"])
def test_what_a_gradient_head_keeps_of_a_picture_can_be_taken_out(covariance):
    data = draw([0, 1, 2] * 8)

    def kept(features: Features) -> PooledHead:
        head = HEADS["linear"](HEADS["linear"].Config(align="gaussian", covariance=covariance), DIM)
        head.grow(3, torch.Generator().manual_seed(1))
        head.fit(features, None, torch.Generator().manual_seed(2))
        head.learn_known(features, None, stays=True)
        return head

    head, gone = kept(data), torch.tensor([1, 4, 7, 10])
    rest = torch.ones(24, dtype=torch.bool)
    rest[gone] = False
    never = kept(Features(data.x[rest], data.y[rest]))
    head.gaussians.forget(Features(data.x[gone], data.y[gone]))
    head.known.forget(data.x[gone], 1, 4)
    for name in ("mean", "covariance", "count"):
        torch.testing.assert_close(getattr(head.gaussians, name), getattr(never.gaussians, name), atol=1e-5, rtol=1e-5)
    for name in ("total", "count", "packed_gram"):
        torch.testing.assert_close(getattr(head.known, name), getattr(never.known, name), atol=1e-8, rtol=0)


def test_gaussians_of_sums_are_those_of_their_features():
    data = draw([0, 1, 1, 3] * 30)
    head = fitted("prototype", {}, data, 4)
    made, observed = ClassGaussians.of(head.known.sums), ClassGaussians(DIM, shared=True)
    observed.grow(4)
    observed.observe(data)
    assert made.count.tolist() == [30, 60, 0, 30]
    torch.testing.assert_close(made.mean, observed.mean)
    wanted = shrunk(unpack_triangle(observed.covariance[0]), 120 - 3)
    torch.testing.assert_close(unpack_triangle(made.covariance[0]), wanted.float(), atol=1e-5, rtol=1e-5)
