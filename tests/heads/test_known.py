"""What heads keep to tell pictures of known classes from others."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load, save

from sapwood.functional.openset import nearest_distance, shared_gaussians
from sapwood.heads import HEADS, Features
from sapwood.heads.base import PooledHead

DIM = 12
CASES = [
    ("linear", {}),
    ("cosine", {}),
    ("linear", {"align": "gaussian", "align_steps": 20}),
    ("prototype", {}),
    ("ridge", {}),
]
CASES += [("ridge", {"projection": 30})]
cases = pytest.mark.parametrize(("name", "settings"), CASES, ids=[f"{n}-{s}" for n, s in CASES])


def taught(name, settings, rounds, stays=True) -> PooledHead:
    head = HEADS[name](HEADS[name].Config(**settings), DIM)
    for index, (train, held) in enumerate(rounds):
        generator = torch.Generator().manual_seed(index)
        head.grow(max(0, int(train.y.max()) + 1 - head.classes), generator)
        if head.wants_features:
            head.fit(train, held, generator)
        head.learn_known(train, held, stays=stays)
    return head


def accepted(head: PooledHead, x: torch.Tensor) -> float:
    gaussians, limit = head.known_gaussians()
    return (nearest_distance(x, gaussians) <= limit).double().mean().item()


@cases
def test_known_pictures_are_let_in_and_others_are_not(name, settings, draw):
    head = taught(name, settings, [(draw([0, 1], 60), draw([0, 1], 10)), (draw([2, 3], 60), None)])
    assert 0.9 <= accepted(head, draw(range(4), 200).x) <= 0.99
    assert accepted(head, draw([4, 5], 100).x) < 0.2


@cases
def test_every_head_says_the_same(name, settings, draw):
    """Sums are sums: whoever keeps them."""
    rounds = [(draw([0, 1], 30), draw([0, 1], 5)), (draw([2, 0], 30), None)]
    x = torch.cat([part.x for pair in rounds for part in pair if part is not None]).double()
    y = torch.cat([part.y for pair in rounds for part in pair if part is not None])
    head = taught(name, settings, rounds)
    assert torch.allclose(head.sums.gram, x.T @ x, rtol=1e-10)
    assert torch.allclose(head.sums.total[2], x[y == 2].sum(0), rtol=1e-10)
    assert head.sums.count.tolist() == torch.bincount(y).tolist()


@cases
def test_stored_and_loaded(name, settings, draw):
    head = taught(name, settings, [(draw([0, 1], 30), None)])
    tensors, meta = head.state()
    assert any(name.startswith("known.") for name in tensors)
    again = HEADS[name](HEADS[name].Config(**settings), DIM)
    again.load(load(save(tensors)), json.loads(json.dumps(meta)))
    (one, limit), (other, same) = head.known_gaussians(), again.known_gaussians()
    assert torch.equal(one.factor, other.factor)
    assert limit == same
    assert again.calibrated == head.calibrated


@cases
def test_a_state_of_an_earlier_release_opens_and_says_nothing(name, settings, draw):
    head = taught(name, settings, [(draw([0, 1], 30), None)])
    tensors, meta = head.state()
    old = {name: tensor for name, tensor in tensors.items() if not name.startswith("known.")}
    again = HEADS[name](HEADS[name].Config(**settings), DIM)
    again.load(old, {key: value for key, value in meta.items() if key not in ("known", "calibrated")})
    assert again.known_gaussians() is None
    again.grow(1, torch.Generator())
    new = Features(draw([2], 30).x, torch.full((30,), 2))
    if again.wants_features:
        again.fit(new, None, torch.Generator())
    again.learn_known(new, None, stays=True)
    # Of a ridge head the sums have been there all along; others lack the earlier pictures for good.
    assert (again.known_gaussians() is not None) == again.keeps_sums
    later = HEADS[name](HEADS[name].Config(**settings), DIM)
    later.load(*again.state())
    assert (later.known_gaussians() is not None) == again.keeps_sums


def test_few_pictures_say_nothing_until_rounds_add_up(draw):
    head = taught("prototype", {}, [(draw([0, 1], 5), None)])
    assert head.known_gaussians() is None
    head = taught("prototype", {}, [(draw([0, 1], 5), None), (draw([2, 3], 5), None)])
    assert len(head.known.distances) == 20
    assert head.known_gaussians() is not None


def test_where_features_were_trained_only_held_out_pictures_count(draw):
    rounds = [(draw([0, 1], 40), draw([0, 1], 12))]
    assert len(taught("linear", {}, rounds, stays=False).known.distances) == 24
    assert len(taught("linear", {}, rounds).known.distances) == 104
    assert len(taught("linear", {}, [(rounds[0][0], None)], stays=False).known.distances) == 0


def test_carry(draw, rng):
    P = torch.eye(DIM, dtype=torch.float64) + 0.1 * torch.randn(DIM, DIM, generator=rng)
    data = draw([0, 1], 30)
    head = taught("linear", {}, [(data, None)])
    head.known.carry(P)
    moved = taught("linear", {}, [(Features((data.x.double() @ P.T).float(), data.y), None)])
    assert torch.allclose(head.sums.total, moved.sums.total, atol=1e-3)
    assert torch.allclose(head.sums.gram, moved.sums.gram, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("name", ["linear", "prototype"])
def test_a_class_that_goes_leaves_the_shared_covariance(name, draw):
    first, second = draw([0, 1, 2], 30), draw([0, 2], 30)
    head = taught(name, {}, [(first, None), (second, None)])
    whole = shared_gaussians(head.sums)
    head.regroup([[0], [2]])
    left = shared_gaussians(head.sums)
    assert torch.allclose(left.mean, whole.mean[[0, 2]])
    assert torch.allclose(left.factor @ left.factor.T, whole.factor @ whole.factor.T, rtol=0.05, atol=0.02)
    assert set(head.known.labels.tolist()) == {0, 1}


def test_two_classes_that_become_one(draw):
    data = draw([0, 1, 2], 30)
    head = taught("linear", {}, [(data, None)])
    head.regroup([[0, 2], [1]])
    joined = taught("linear", {}, [(Features(data.x, torch.tensor([0, 1, 0])[data.y]), None)])
    assert torch.allclose(head.sums.total, joined.sums.total)
    assert torch.allclose(head.sums.gram, joined.sums.gram)


@pytest.mark.parametrize("name", ["prototype", "ridge"])
def test_calibrated_only_where_something_was_held_out(name, draw):
    assert taught(name, {}, [(draw([0, 1], 20), draw([0, 1], 5))]).calibrated
    assert taught(name, {}, [(draw([0, 1], 20), None)]).calibrated  # by leaving one out
    assert not taught(name, {}, [(draw([0, 1], 1), None)]).calibrated


@pytest.mark.parametrize("name", ["prototype", "ridge", "linear"])
def test_the_shared_covariance_is_factored_once(name, draw, monkeypatch):
    import sapwood.heads.base as module

    made = []

    def counted(sums):
        made.append(1)
        return shared_gaussians(sums)

    monkeypatch.setattr(module, "shared_gaussians", counted)
    head = taught(name, {}, [(draw([0, 1], 30), None)])
    first = head.known_gaussians()[0]
    assert head.known_gaussians()[0] is first
    assert len(made) == 1
    head.grow(1, torch.Generator())
    head.fit(draw([1, 2], 30), None, torch.Generator())
    head.learn_known(draw([1, 2], 30), None, stays=True)
    second = head.known_gaussians()[0]
    assert len(second.mean) == 3, "nothing of before is served"
    head.known.observe(*draw([0], 3)) if head.known.own else head.observe(draw([0], 3))
    third = head.known_gaussians()[0]
    assert not torch.equal(third.mean, second.mean), "sums that change in place are seen too"
    assert len(made) == 3
