"""Heads that weigh rare classes like common ones: exact over rounds and repairs, and better for the rare."""

from __future__ import annotations

import pytest
import torch

from sapwood.functional.balance import balanced_sums
from sapwood.functional.statistics import ridge_solve
from sapwood.heads import Features, RidgeHead
from sapwood.heads.reading import Expanded
from sapwood.heads.ridge import STRENGTHS, RidgeConfig
from sapwood.heads.strength import Evidence

DIM = 12
projected = pytest.mark.parametrize("projection", [None, 40])


def join(*parts: Features) -> Features:
    return Features(torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts]))


def fitted(rounds, classes: int = 6, balanced: bool = True, **settings) -> RidgeHead:
    head, generator = RidgeHead(RidgeConfig(**settings), DIM), torch.Generator().manual_seed(0)
    head.grow(classes, torch.Generator().manual_seed(1))  # the projection does not depend on their number
    head.balanced = balanced
    for train, held in rounds:
        head.fit(train, held, generator)
    return head


def same(one: RidgeHead, other: RidgeHead) -> bool:
    return torch.allclose(one.solve(), other.solve(), atol=1e-8, rtol=0)


@projected
def test_uneven_increments_equal_one_batch(draw, projection):
    parts = [(draw([0, 1], 9), draw([0], 3)), (join(draw([2], 30), draw([3], 1)), None), (draw([4, 5, 0], 4), None)]
    whole = join(*(part for both in parts for part in both if part is not None))
    settings = {"projection": projection, "strength": 0.5}
    batch = fitted([(whole, None)], **settings)
    assert same(fitted(parts, **settings), batch)
    assert same(fitted([parts[2], parts[0], parts[1]], **settings), batch)
    assert not torch.allclose(batch.solve(), fitted([(whole, None)], balanced=False, **settings).solve(), atol=1e-3)


@projected
def test_what_is_taken_out_was_never_there(draw, projection):
    kept, gone, wrong = join(draw([0], 20), draw([1], 5)), draw([2], 40), draw([0], 3)
    settings = {"projection": projection, "strength": 0.5}
    head = fitted([(join(kept, gone, wrong), None)], classes=3, **settings)
    head.forget(gone)
    head.forget(wrong)
    head.observe(Features(wrong.x, wrong.y + 1))
    head.regroup([[0], [1]])
    head.settle()
    never = fitted([(join(kept, Features(wrong.x, wrong.y + 1)), None)], classes=2, **settings)
    assert same(head, never)
    # Logits are float32, of solutions that are equal to 1e-8.
    assert torch.allclose(head.logits(kept.x), never.logits(kept.x), atol=1e-5)


def test_rare_classes_are_found(draw, rng):
    def blurred(features):
        return Features(features.x + 2.5 * torch.randn(features.x.shape, generator=rng), features.y)

    train = blurred(join(draw([0, 1, 2], 150), draw([3, 4, 5], 4)))
    test = blurred(draw(range(6), 200))
    recall = []
    for balanced in (False, True):
        head = fitted([(train, None)], balanced=balanced)
        right = head.logits(test.x).argmax(1) == test.y
        recall.append((right[test.y < 3].double().mean().item(), right[test.y >= 3].double().mean().item()))
    assert recall[1][1] > recall[0][1] + 0.2
    assert sum(recall[1]) > sum(recall[0]) + 0.1


def test_even_classes_are_fitted_as_ever(draw):
    even = [(draw([0, 1], 12), draw([0, 1], 5)), (draw([2, 3], 17), None)]
    uneven = [*even[:1], (draw([2, 3], 9), None)]
    assert torch.equal(fitted(even).solve(), fitted(even, balanced=False).solve())
    assert not torch.equal(fitted(uneven).solve(), fitted(uneven, balanced=False).solve())


def test_it_is_kept_and_older_states_stay_as_they_were(draw):
    head = fitted([(join(draw([0], 30), draw([1, 2], 3)), None)], classes=3)
    tensors, meta = head.state()
    again = RidgeHead(RidgeConfig(), DIM)
    again.load(tensors, meta)
    assert again.balanced
    assert torch.equal(again.solve(), head.solve())
    assert torch.equal(again.evidence.errors, head.evidence.errors)
    older = {key: value for key, value in meta.items() if key not in ("balanced", "strength_errors")}
    again.load(tensors, older)
    assert not again.balanced
    assert torch.equal(again.solution, head.solution)  # predictions
    again.settle()
    torch.testing.assert_close(again.solve(), ridge_solve(head.gram, head.cross, head.strength))
    torch.testing.assert_close(
        head.solve(), ridge_solve(*balanced_sums(head.gram, head.cross, head.count), head.strength)
    )


def test_a_round_of_few_pictures_does_not_overrule_the_earlier_ones(draw):
    data = draw([0, 1, 2], 9)
    blurred = Features(data.x + 4 * torch.randn(data.x.shape, generator=torch.Generator().manual_seed(3)), data.y)
    few = draw([3, 4], 2)
    alone, head = fitted([(few, None)]), fitted([(blurred, None)])
    errors = head.evidence.errors.clone()
    head.fit(few, None, torch.Generator())
    torch.testing.assert_close(head.evidence.errors, errors + alone.evidence.errors)
    limit = 1.03 * head.evidence.errors.min()
    assert head.strength == max(s for s, e in zip(STRENGTHS, head.evidence.errors, strict=True) if e <= limit)
    assert head.strength > alone.strength


@pytest.mark.parametrize(("held", "how"), [(5, "validation"), (4, "leave-one-out"), (0, "leave-one-out")])
def test_held_out_pictures_choose_only_where_every_class_has_some(draw, held, how):
    train = draw([0, 1], 9)
    some = join(draw([0], 6), draw([1], held)) if held else draw([0], 6)
    train, some = (Expanded(*features, torch.Tensor.double) for features in (train, some))
    assert Evidence().choose(train, some, balanced=True)[1] == how


def test_errors_of_a_round_by_fitting_without_each_picture(draw):
    train = join(draw([0], 12), draw([2], 4), draw([5], 1))
    evidence = Evidence()
    doubled = Features(train.x.double(), train.y)
    evidence.choose(Expanded(*doubled, torch.clone), None, balanced=True)
    weight = torch.tensor([17 / 3 / count for count in (12, 4, 1)], dtype=torch.float64).repeat_interleave(
        torch.tensor([12, 4, 1])
    )
    target = torch.nn.functional.one_hot(train.y, 6)[:, [0, 2, 5]].double()
    for place in (7, 9, 11):
        errors = torch.zeros(17, dtype=torch.float64)
        for index in range(17):
            rest = torch.arange(17) != index
            x, y = doubled.x[rest] * weight[rest, None], target[rest]
            solution = ridge_solve(doubled.x[rest].T @ x, x.T @ y, STRENGTHS[place])
            errors[index] = (doubled.x[index] @ solution - target[index]).square().sum()
        expected = errors[:12].mean() + errors[12:16].mean()
        assert evidence.errors[place].item() == pytest.approx(expected.item(), rel=1e-9)
