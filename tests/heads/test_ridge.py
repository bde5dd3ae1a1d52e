from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from sapwood.functional.openset import folds
from sapwood.functional.statistics import fit_temperature, ridge_solve
from sapwood.heads import Features, RidgeHead
from sapwood.heads.calibration import Chosen, chosen_beside
from sapwood.heads.ridge import STRENGTHS, RidgeConfig

DIM = 12


def join(*parts: Features) -> Features:
    return Features(torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts]))


def fitted(rounds, generator_seed: int = 0, classes: int = 6, **settings) -> RidgeHead:
    """A head that knows all classes from the start and sees the pictures in the given parts."""
    head, generator = RidgeHead(RidgeConfig(**settings), DIM), torch.Generator().manual_seed(generator_seed)
    head.grow(classes, generator)
    for train, held in rounds:
        head.fit(train, held, generator)
    return head


@pytest.mark.parametrize("projection", [None, 40])
def test_three_increments_equal_one_batch_solve(draw, projection):
    parts = [(draw([0, 1], 9), draw([0, 1], 3)), (draw([2, 3], 9), None), (draw([4, 5, 0], 9), draw([4, 5], 2))]
    whole = join(*(p for part in parts for p in part if p is not None))
    settings = {"projection": projection, "strength": 0.5}
    steps, batch = fitted(parts, **settings), fitted([(whole, None)], **settings)
    assert torch.allclose(steps.solve(), batch.solve(), atol=1e-8, rtol=0)
    assert torch.equal(steps.count, torch.bincount(whole.y, minlength=6))
    shuffled = fitted([parts[2], parts[0], parts[1]], **settings)
    assert torch.allclose(shuffled.solve(), batch.solve(), atol=1e-8, rtol=0)


def test_classes_known_ahead_or_not_make_no_difference(draw):
    parts = [(draw([0, 1], 9), None), (draw([2, 3], 9), None), (draw([4, 5], 9), None)]
    grown, generator = RidgeHead(RidgeConfig(strength=0.5), DIM), torch.Generator().manual_seed(0)
    for train, held in parts:
        grown.grow(2, generator)
        grown.fit(train, held, generator)
    assert torch.equal(grown.solve(), fitted(parts, strength=0.5).solve())


@pytest.mark.parametrize("projection", [None, 40])
def test_equals_scikit_learn_on_projected_features(draw, tokens, projection):
    data, test = draw(range(6), 20), draw(range(6), 5)
    head = fitted([(data, None)], projection=projection, strength=2.0)
    R = np.eye(DIM) if projection is None else head.projection.double().numpy()
    h, h_test = data.x.double().numpy() @ R, test.x.double().numpy() @ R
    if projection is not None:
        h, h_test = np.maximum(h, 0), np.maximum(h_test, 0)
    model = Ridge(alpha=2.0, fit_intercept=False, solver="cholesky").fit(h, np.eye(6)[data.y])
    assert np.allclose(head(tokens(test.x)), model.predict(h_test), atol=1e-4)


def test_projection_is_standard_normal_and_drawn_from_the_seed(draw):
    data = draw(range(6), 5)
    one, same, other = (fitted([(data, None)], seed, projection=400) for seed in (0, 0, 1))
    assert one.projection.shape == (DIM, 400)
    assert abs(one.projection.mean().item()) < 0.05
    assert abs(one.projection.std().item() - 1) < 0.05
    assert torch.equal(one.projection, same.projection)
    assert not torch.equal(one.projection, other.projection)
    assert "projection" not in one.state()[0]
    one.fit(data, None, torch.Generator().manual_seed(7))
    assert torch.equal(one.projection, same.projection)  # fixed at the first round


def brute_force(train: Features, held: Features) -> np.ndarray:
    """Of each strength's fit on train the squared error of one-hot targets on held, a mean of each class, summed."""
    goal = np.eye(6)
    errors = []
    for strength in STRENGTHS:
        model = Ridge(alpha=strength, fit_intercept=False, solver="svd").fit(train.x.double().numpy(), goal[train.y])
        each = ((model.predict(held.x.double().numpy()) - goal[held.y]) ** 2).sum(1)
        errors.append(sum(each[held.y.numpy() == label].mean() for label in np.unique(held.y)))
    return np.array(errors)


def test_strength_is_chosen_on_the_validation_pictures_of_all_rounds(draw):
    assert len(STRENGTHS) == 17
    chosen = set()
    for count in (3, 8, 60):
        rounds = []
        for classes in ([0, 1], [2, 3]):
            train, held = draw(classes, count), draw(classes, 9)
            noise = 3 * torch.randn(train.x.shape, generator=torch.Generator().manual_seed(2))
            rounds.append((Features(train.x + noise, train.y), held))
        for data in (rounds[:1], rounds[1:], rounds):
            errors = sum(brute_force(*each) for each in data)
            expected = max(s for s, error in zip(STRENGTHS, errors, strict=True) if error <= 1.03 * errors.min())
            head = fitted(data)
            assert head.strength == expected
            chosen.add(head.strength)
    assert len(chosen) > 1


def test_strength_by_leave_one_out_without_validation_pictures(draw):
    train = draw([0, 3, 4], 4)
    errors = []
    for strength in STRENGTHS:
        total = 0.0
        for i in range(len(train.y)):
            rest = torch.arange(len(train.y)) != i
            model = Ridge(alpha=strength, fit_intercept=False, solver="svd")
            model.fit(train.x[rest].double().numpy(), np.eye(6)[train.y[rest]])
            total += np.sum((model.predict(train.x[i : i + 1].double().numpy()) - np.eye(6)[train.y[i]]) ** 2)
        errors.append(total)
    expected = STRENGTHS[int(np.argmin(errors))]
    empty = Features(torch.zeros(0, DIM), torch.zeros(0, dtype=torch.int64))
    for held in (None, empty):
        head, generator = RidgeHead(RidgeConfig(), DIM), torch.Generator()
        head.grow(6, generator)
        facts = head.fit(train, held, generator)
        assert facts["held_out"] == "leave-one-out"
        assert facts["strength"] == head.strength == expected
        assert head.temperature != 1.0


def test_single_pictures_choose_nothing(draw):
    first = draw(range(3), 1)
    head = fitted([(first, None)])
    centre = first.x.square().sum().item() / DIM
    assert head.strength is None
    assert torch.allclose(head.solve(), ridge_solve(head.gram, head.cross, centre), rtol=1e-5)
    head = fitted([(draw([0, 1], 5), draw([0, 1], 5)), (draw([2, 3], 1), None)])
    assert head.strength in STRENGTHS
    assert fitted([(first, None)], strength=7.0).strength == 7.0


def test_a_round_of_one_class_keeps_the_strength(draw):
    many = (draw([0, 1, 2], 12), draw([0, 1, 2], 4))
    one = (draw([3], 12), draw([3], 4))
    assert fitted([one]).strength is None
    assert fitted([many, one]).strength == fitted([many]).strength


def test_carry_equals_recomputed_sums_under_a_linear_drift(draw, rng):
    P = torch.eye(DIM, dtype=torch.float64) + 0.3 * torch.randn(DIM, DIM, generator=rng, dtype=torch.float64)
    old, new = draw([0, 1, 2], 10), draw([3, 4, 5], 10)

    def moved(f):
        return Features((f.x.double() @ P.T).float(), f.y)

    head, fresh = fitted([(old, None)], strength=1.0, drift="linear"), fitted([(moved(old), None)], strength=1.0)
    stale = head.solve()
    head.carry(P)
    assert torch.allclose(head.gram, fresh.gram, rtol=1e-5, atol=1e-3)
    assert torch.allclose(head.cross, fresh.cross, rtol=1e-5, atol=1e-3)
    generator = torch.Generator()
    head.fit(moved(new), None, generator)
    fresh.fit(moved(new), None, generator)
    assert torch.allclose(head.solve(), fresh.solve(), atol=1e-5)
    assert not torch.allclose(stale[:, :3], head.solve()[:, :3], atol=1e-2)


def test_sums_behind_a_projection_are_not_carried(draw):
    head = fitted([(draw([0], 3), None)], projection=20)
    with pytest.raises(ValueError, match="projection=None"):
        head.carry(torch.eye(DIM))


def test_gram_is_stored_as_a_triangle_in_float64(draw):
    data = draw(range(6), 4)
    tensors, _ = fitted([(data, None)]).state()
    assert tensors["gram"].dtype == tensors["cross"].dtype == torch.float64
    assert tensors["gram"].shape == (DIM * (DIM + 1) // 2,)
    G = data.x.double().T @ data.x.double()
    assert torch.allclose(tensors["gram"], G[tuple(torch.triu_indices(DIM, DIM))], atol=1e-9)


def test_before_the_first_fit_it_predicts_zeros(tokens, rng):
    head = RidgeHead(RidgeConfig(projection=20), DIM)
    head.grow(3, rng)
    assert torch.equal(head(tokens(torch.ones(2, DIM))), torch.zeros(2, 3))


def test_validation_accuracy_is_measured_before_the_pictures_join(draw, tokens):
    first, train, held = draw([0, 1, 2], 4), draw([3, 4, 5], 2), draw([3, 4, 5], 8)
    head = fitted([(first, None)], strength=1.0)
    facts = head.fit(train, held, torch.Generator())
    apart = fitted([(first, None), (train, None)], strength=1.0)
    right = (apart(tokens(held.x)).argmax(1) == held.y).float().mean().item()
    assert facts["validation_accuracy"] == pytest.approx(right)
    assert right < 1


@pytest.mark.parametrize("held_out", [0, 6])  # few held-out pictures are tried like the others
def test_temperature_of_pictures_taken_out_a_fifth_at_a_time(draw, held_out):
    before, data = draw([0, 1], 10), draw([2, 3, 0], 8)
    rest, held = Features(data.x[held_out:], data.y[held_out:]), Features(data.x[:held_out], data.y[:held_out])
    first = Chosen(fitted([(before, None)], classes=4, strength=3.0).temperature, 20)
    head = fitted([(before, None), (rest, held if held_out else None)], classes=4, strength=3.0)
    now = join(rest, held)
    logits, labels = [], []
    for part in folds(now.y, 5):
        kept = torch.ones(len(now.y), dtype=torch.bool)
        kept[part] = False
        known = join(before, Features(now.x[kept], now.y[kept]))
        model = Ridge(alpha=3.0, fit_intercept=False, solver="svd")
        model.fit(known.x.double().numpy(), np.eye(4)[known.y])
        logits.append(torch.from_numpy(model.predict(now.x[part].double().numpy())))
        labels.append(now.y[part])
    second = chosen_beside(first, torch.cat(logits), torch.cat(labels), fewest=1)
    assert second is not None
    assert head.temperature == pytest.approx(second.temperature, rel=1e-4)


def test_temperature_on_held_out_pictures_where_they_are_many(draw):
    train, held = draw([0, 1, 2], 20), draw([0, 1, 2], 34)
    apart = fitted([(train, None)], classes=3, strength=3.0)
    expected = fit_temperature(apart.logits(held.x), held.y)
    assert fitted([(train, held)], classes=3, strength=3.0).temperature == pytest.approx(expected, rel=1e-5)
