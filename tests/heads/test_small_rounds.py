"""Rounds that can say little: of one class, of a few pictures, or of pictures much alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from sapwood.functional.calibration import expected_calibration_error
from sapwood.functional.openset import nearest_distance, within_covariance
from sapwood.functional.statistics import fit_temperature
from sapwood.heads import HEADS, Features, RidgeHead
from sapwood.heads.base import PooledHead
from sapwood.heads.calibration import Chosen, chosen_beside
from sapwood.heads.openset import newest_of_each
from sapwood.heads.ridge import STRENGTHS, RidgeConfig
from sapwood.heads.strength import most_of
from sapwood.learner import Learner

DIM = 12


def one_by_one(draw, classes: int, count: int, **settings) -> tuple[RidgeHead, list[Features]]:
    head, rounds = RidgeHead(RidgeConfig(**settings), DIM), [draw([label], count) for label in range(classes)]
    for number, each in enumerate(rounds):
        generator = torch.Generator().manual_seed(number)
        head.grow(1, generator)
        head.fit(each, None, generator)
        head.learn_known(each, None, stays=True)
    return head, rounds


def test_the_strength_of_classes_that_come_one_by_one(draw):
    """By refitting without each picture; the first round has nothing to tell it from."""
    head, rounds = one_by_one(draw, 3, 5)
    errors = torch.zeros(len(STRENGTHS), dtype=torch.float64)
    for number in (1, 2):
        x = torch.cat([each.x for each in rounds[: number + 1]]).double().numpy()
        y = torch.cat([each.y for each in rounds[: number + 1]]).numpy()
        for place, strength in enumerate(STRENGTHS):
            squares = []
            for left in np.flatnonzero(y == number):
                kept = np.arange(len(y)) != left
                model = Ridge(alpha=strength, fit_intercept=False, solver="svd")
                model.fit(x[kept], np.eye(number + 1)[y[kept]])
                squares.append(np.square(model.predict(x[[left]])[0] - np.eye(number + 1)[y[left]]).sum())
            errors[place] += float(np.mean(squares))
    torch.testing.assert_close(head.evidence.errors, errors, rtol=1e-5, atol=1e-8)
    assert head.strength == most_of(STRENGTHS, errors)


def test_sums_wider_than_pictures_are_many(draw):
    """A row then fits itself at small strengths, where rounding alone is left of it: they take what the next says."""
    head, rounds = one_by_one(lambda *asked: Features(50 * (drawn := draw(*asked)).x, drawn.y), 4, 6, projection=300)
    assert torch.isfinite(head.evidence.errors).all()
    x = head.expand(torch.cat([each.x for each in rounds])).double()
    y = torch.cat([each.y for each in rounds])
    errors = torch.zeros(len(STRENGTHS), dtype=torch.float64)
    for number in (1, 2, 3):
        known = y <= number
        inner = x[known] @ x[known].T
        for place, strength in enumerate(STRENGTHS):
            inverse = torch.linalg.inv(inner + strength * torch.eye(len(inner)))  # residuals by the kernel: no M
            residuals = (inverse @ torch.eye(number + 1).double()[y[known]]) / inverse.diagonal().unsqueeze(1)
            errors[place] += residuals[y[known] == number].square().sum(1).mean()
    apart = (head.evidence.errors / errors - 1).abs()
    assert apart.max() < 0.01
    assert head.strength == most_of(STRENGTHS, errors)


def test_pictures_that_are_alone_in_their_class_tell_no_strength(draw):
    head, _ = one_by_one(draw, 3, 1)
    assert head.strength is None
    assert not head.evidence.errors.any()


@pytest.mark.parametrize("projection", [None, 40])
def test_the_temperature_of_classes_that_come_one_by_one(draw, projection):
    head, _ = one_by_one(draw, 6, 30, projection=projection)
    assert head.calibrated
    assert miscalibrated(head, draw) < 0.06


@pytest.mark.parametrize("name", ["prototype", "ridge"])
def test_classes_that_come_alone_after_some_together_calibrate_anew(name, draw):
    """What two classes ask for is not what six do."""
    head, generator = HEADS[name](HEADS[name].Config(), DIM), torch.Generator().manual_seed(0)
    for labels in ([0, 1], [2], [3], [4], [5]):
        head.grow(len(labels), generator)
        head.fit(draw(labels, 60), None, generator)
    assert miscalibrated(head, draw) < 0.06


def miscalibrated(head: PooledHead, draw) -> float:
    """Expected calibration error on pictures that no fit saw."""
    unseen = draw(range(6), 200)
    score, best = (head.logits(unseen.x) / head.temperature).softmax(1).max(1)
    error = expected_calibration_error(score, best == unseen.y)
    assert error is not None
    return error


def test_rows_that_are_trained_need_two_classes_to_calibrate():
    head = HEADS["linear"](HEADS["linear"].Config(), DIM)
    logits, targets = torch.tensor([[2.0, 1.0], [1.0, 2.0], [2.0, 1.0]]), torch.zeros(3, dtype=torch.int64)
    head.calibrate_temperature(logits, targets)
    assert (head.temperature, head.calibrated) == (1.0, False)
    head.calibrate_temperature(logits, torch.tensor([0, 1, 0]))
    assert head.calibrated


def test_two_pictures_do_not_overrule_many(draw):
    head, generator = RidgeHead(RidgeConfig(), DIM), torch.Generator().manual_seed(0)
    head.grow(4, generator)
    head.fit(draw(range(4), 50), None, generator)
    before = head.temperature
    head.fit(draw([0, 1], 1), None, generator)
    assert abs(math.log(head.temperature / before)) < 0.1


@pytest.mark.parametrize("name", ["prototype", "ridge"])
def test_a_hundred_pictures_of_one_class_do_not_speak_for_all(name, draw):
    """Nor does one more picture change what they say."""
    found = {}
    for count in (99, 100):
        head, rng = HEADS[name](HEADS[name].Config(), DIM), torch.Generator().manual_seed(0)
        head.grow(5, rng)
        head.fit(draw(range(5), 40), None, rng)
        before = head.temperature
        head.grow(1, rng)
        hard = draw([5], count)
        head.fit(Features(hard.x + 2 * torch.randn(hard.x.shape, generator=rng), hard.y), None, rng)
        found[count] = head.temperature / before
    assert found[100] == pytest.approx(found[99], rel=0.1)
    assert 0.9 < found[100] < 1.4


def test_all_classes_again_take_the_place_of_what_was_told_before():
    targets = torch.arange(300) % 3
    logits = torch.eye(3)[targets] + torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    anew = chosen_beside(Chosen(1.0, 0), logits, targets, fewest=1)
    assert chosen_beside(Chosen(50.0, 900), logits, targets, fewest=1) == anew
    assert anew.pictures == 300
    two = targets < 2  # of two classes of three
    share = chosen_beside(Chosen(50.0, 900), logits[two], targets[two], fewest=1)
    alone = fit_temperature(logits[two], targets[two], earlier=300)
    assert share.pictures == 500
    assert 1 / share.temperature == pytest.approx((300 / 50 + 200 / alone) / 500)


def test_pictures_whose_class_is_ruled_out_are_none_of_the_two_classes():
    logits = torch.tensor([[2.0, 1.0, -torch.inf], [1.0, 0.5, -torch.inf], [1.0, 0.5, -torch.inf]])
    none = Chosen(1.0, 0)
    assert chosen_beside(none, logits, torch.tensor([0, 0, 2]), fewest=2) is None
    assert chosen_beside(none, logits, torch.tensor([0, 1, 2]), fewest=2).pictures == 2
    assert chosen_beside(none, logits, torch.tensor([0, 0, 2]), fewest=1).pictures == 2


def test_a_few_pictures_all_mistaken_do_not_flatten_all_scores():
    wrong = torch.tensor([[1.0, 0.0]] * 5), torch.ones(5, dtype=torch.int64)
    assert fit_temperature(*wrong) > 1000  # flat would be best for them
    assert chosen_beside(Chosen(0.2, 20), *wrong, fewest=1).temperature == pytest.approx(0.2 * 24.5 / 19.5, rel=1e-3)
    assert chosen_beside(Chosen(1.0, 0), *wrong, fewest=1) is None


@pytest.mark.parametrize("name", ["linear", "prototype", "ridge"])
@pytest.mark.parametrize("label", [4, 0], ids=["new", "known"])
def test_pictures_much_alike_do_not_set_the_limit_for_all(name, label, draw):
    head, generator = HEADS[name](HEADS[name].Config(), DIM), torch.Generator().manual_seed(0)
    alike = Features(draw([label], 1).x + 0.02 * torch.randn(20, DIM, generator=generator), torch.full((20,), label))
    for each in (draw(range(4), 30), alike):
        head.grow(max(0, int(each.y.max()) + 1 - head.classes), generator)
        if head.wants_features:
            head.fit(each, None, generator)
        head.learn_known(each, None, stays=True)

    def accepted() -> float:
        gaussians, limit = head.known_gaussians()
        return (nearest_distance(draw(range(4), 100).x, gaussians) <= limit).double().mean().item()

    assert accepted() > 0.75
    if label == 4:
        head.forget(alike) if name != "linear" else head.known.observe(alike.x, alike.y, -1)
        head.regroup([(0,), (1,), (2,), (3,)])
        assert accepted() > 0.85


@pytest.mark.parametrize("name", ["linear", "prototype", "ridge"])
def test_a_class_that_goes_without_its_pictures_does_not_widen_what_is_known(name, draw):
    """As after a removal where features have moved: the sums cannot be taken back picture by picture."""
    head, rng = HEADS[name](HEADS[name].Config(), DIM), torch.Generator().manual_seed(0)
    head.grow(5, rng)
    taught = draw(range(5), 60)
    if head.wants_features:
        head.fit(taught, None, rng)
    head.learn_known(taught, None, stays=True)

    def known(labels: list[int]) -> float:
        gaussians, limit = head.known_gaussians()
        return (nearest_distance(draw(labels, 100).x, gaussians) <= limit).double().mean().item()

    assert known([5]) < 0.05
    spread = within_covariance(head.sums)
    head.regroup([(0,), (1,), (2,)])
    torch.testing.assert_close(within_covariance(head.sums), spread)
    assert known([0, 1, 2]) > 0.9
    assert known([3, 4, 5]) < 0.05


def test_many_pictures_of_one_class_do_not_drive_the_others_out():
    labels = torch.tensor([0] * 50 + [1] * 950 + [2] * 400)
    kept = labels[newest_of_each(labels, 1000)]
    assert torch.bincount(kept).tolist() == [50, 550, 400]


def test_a_class_a_round_ends_like_all_at_once(picture_folder: Callable[..., Path], tmp_path: Path) -> None:
    """The default method: it had no strength at all, and scores that said nothing."""
    names = ["ant", "bee", "cat", "dog"]
    tests = picture_folder(names, 12, name="tests", seed=1)
    found = {}
    for how, rounds in {"once": [names], "each": [[name] for name in names]}.items():
        learner = Learner.create(tmp_path / how, backbone="random:dinov2-tiny", image_size=28)
        for place, part in enumerate(rounds):
            learner.learn(picture_folder(part, 20, name=f"{how}{place}"))
        found[how] = learner.evaluate(tests)
    assert found["each"].accuracy >= found["once"].accuracy - 0.05
    assert found["each"].ece <= found["once"].ece + 0.1
