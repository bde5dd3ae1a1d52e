from __future__ import annotations

import numpy as np
import pytest
import torch

from sapwood.functional.losses import scoped_cross_entropy
from sapwood.functional.statistics import unpack_triangle
from sapwood.heads import HEADS, CosineHead, Features, LinearHead
from sapwood.heads.class_gaussians import ClassGaussians
from sapwood.heads.gaussian import align

DIM = 12


def join(*parts: Features) -> Features:
    return Features(torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts]))


def gaussians(shared: bool, *rounds: Features) -> ClassGaussians:
    kept = ClassGaussians(DIM, shared)
    kept.grow(6)
    for features in rounds:
        kept.observe(features)
    return kept


def test_moments_equal_numpy(draw):
    data = join(draw([0, 1, 4], 30), draw([5], 1))
    kept = gaussians(False, data)
    for label in (0, 1, 4):
        rows = data.x[data.y == label].double().numpy()
        assert np.allclose(kept.mean[label], rows.mean(0), atol=1e-6)
        assert np.allclose(unpack_triangle(kept.covariance[label]), np.cov(rows.T), atol=1e-5)
    assert kept.count.tolist() == [30, 30, 0, 0, 30, 1]
    assert (kept.covariance[5] == 0).all()


@pytest.mark.parametrize("shared", [False, True])
def test_more_pictures_of_known_classes_are_merged(draw, shared):
    parts = [draw([0, 1], 7), draw([1, 2], 1), draw([0, 1, 2, 3], 11)]
    steps, batch = gaussians(shared, *parts), gaussians(shared, join(*parts))
    assert torch.allclose(steps.mean, batch.mean, atol=1e-5)
    assert torch.allclose(steps.covariance, batch.covariance, atol=1e-4)
    assert torch.equal(steps.count, batch.count)
    assert (steps.rounds, batch.rounds) == (3, 1)


def test_shared_covariance_is_the_pooled_one(draw):
    data = join(draw([0, 1], 20), draw([2], 5), draw([3], 1))
    kept = gaussians(True, data)
    assert kept.covariance.shape == (1, DIM * (DIM + 1) // 2)
    scatter = sum(np.cov(data.x[data.y == c].double().numpy().T) * (n - 1) for c, n in [(0, 20), (1, 20), (2, 5)])
    assert np.allclose(unpack_triangle(kept.covariance[0]), scatter / (19 + 19 + 4), atol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_carry_equals_recomputed_moments_under_a_linear_drift(draw, rng, shared):
    P = torch.eye(DIM, dtype=torch.float64) + 0.3 * torch.randn(DIM, DIM, generator=rng, dtype=torch.float64)
    data = draw([0, 1, 2], 20)
    kept = gaussians(shared, data)
    kept.carry(P)
    fresh = gaussians(shared, Features((data.x.double() @ P.T).float(), data.y))
    assert torch.allclose(kept.mean, fresh.mean, atol=1e-4)
    assert torch.allclose(kept.covariance, fresh.covariance, atol=1e-3)


@pytest.mark.parametrize("shared", [False, True])
def test_samples_look_like_the_class(draw, rng, shared):
    data = draw([1, 4], 200)
    drawn = gaussians(shared, data).sample(3000, 0.0, rng)
    assert torch.equal(drawn.y, torch.tensor([1, 4]).repeat_interleave(3000))
    for label in (1, 4):
        assert torch.allclose(drawn.x[drawn.y == label].mean(0), data.x[data.y == label].mean(0), atol=0.1)
        spread = np.cov(drawn.x[drawn.y == label].numpy().T)
        assert np.allclose(np.diag(spread), 1.0, atol=0.35)


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("covariance", ["class", "shared"])
def test_alignment_mends_stale_rows(draw, tokens, name, covariance):
    """Each round's rows were trained among themselves only, so that rounds are confused."""
    test, data = draw(range(6), 50), [draw([2 * i, 2 * i + 1], 40) for i in range(3)]

    def accuracy(**settings):
        generator = torch.Generator().manual_seed(0)
        head = HEADS[name](HEADS[name].Config(covariance=covariance, **settings), DIM)
        for block in data:
            head.grow(2, generator)
            optimiser = torch.optim.AdamW(head.parameters(), lr=0.02, weight_decay=0.0)
            for _ in range(30):
                optimiser.zero_grad()
                scoped_cross_entropy(head.training_logits(tokens(block.x)), block.y, block.y.unique()).backward()
                optimiser.step()
            head.fit(block, None, generator)
        return (head(tokens(test.x)).argmax(1) == test.y).float().mean().item()

    stale, aligned = accuracy(align="none"), accuracy(align="gaussian")
    assert aligned > 0.98
    assert aligned > stale + 0.04


def test_the_first_round_is_not_aligned(draw, rng):
    head = LinearHead(LinearHead.Config(align="gaussian"), DIM)
    head.grow(2, rng)
    before = head.classifier.weight.detach().clone()
    assert head.fit(draw([0, 1], 10), None, rng) == {"aligned": False}
    assert torch.equal(head.classifier.weight, before)
    facts = head.fit(draw([0, 1], 10), None, rng)
    assert facts["aligned"]
    assert len(facts["align_loss"]) == 250  # of two batches: 500 steps
    assert not torch.equal(head.classifier.weight, before)


def test_validation_pictures_stay_out_of_the_gaussians(draw, rng):
    head = LinearHead(LinearHead.Config(align="gaussian"), DIM)
    head.grow(2, rng)
    head.fit(draw([0, 1], 10), draw([0, 1], 5), rng)
    assert head.gaussians.count.tolist() == [10, 10]


def test_align_takes_the_documented_step(draw, rng):
    """One epoch of one batch: theta - lr * gradient of the normalised cross entropy, checked by finite differences."""
    once = {"align_epochs": 1, "align_steps": 1, "align_batch": 10_000, "align_samples": 20}
    head = LinearHead(LinearHead.Config(align="gaussian", **once), DIM)
    head.grow(3, rng)
    head.classifier.draw_idle(rng)
    kept = gaussians(False, draw([0, 1, 2], 30))
    start = head.classifier.weight.detach().double().clone()
    bias = head.classifier.bias.detach().double()
    x, y = kept.sample(20, head.config.covariance_ridge, torch.Generator().manual_seed(4))

    def loss(weight):
        logits = x.double() @ weight.T + bias
        logits = logits / (0.1 * logits.square().sum(1, keepdim=True).sqrt())
        return (logits.logsumexp(1) - logits[torch.arange(len(y)), y]).mean().item()

    losses = align(head.classifier, kept, head.config, torch.Generator().manual_seed(4))
    assert losses == pytest.approx([loss(start)], rel=1e-5)
    moved = head.classifier.weight.detach().double() - start
    for i, j in [(0, 0), (1, 5), (2, 11)]:
        step = torch.zeros_like(start)
        step[i, j] = 1e-5
        slope = (loss(start + step) - loss(start - step)) / 2e-5
        assert moved[i, j].item() == pytest.approx(-0.01 * slope, rel=1e-2, abs=1e-6)


def test_rows_that_no_loss_has_moved_are_drawn_before_they_are_aligned(draw, rng):
    """Classes that came alone: their rows are zero, where the loss has no direction."""
    head = LinearHead(LinearHead.Config(align="gaussian"), DIM)
    test = draw([0, 1], 20)
    for label in (0, 1):
        head.grow(1, rng)
        head.fit(draw([label], 20), None, rng)
    assert (head.classifier(test.x).argmax(1) == test.y).float().mean() > 0.95
    assert 0 < head.classifier.weight.norm(dim=1).max() < 100


def test_alignment_works_where_gradients_are_off(draw, rng):
    head = CosineHead(CosineHead.Config(align="gaussian"), DIM)
    head.grow(2, rng)
    with torch.no_grad():
        head.fit(draw([0], 10), None, rng)
        assert head.fit(draw([1], 10), None, rng)["aligned"]
    assert head.classifier.weight.grad is None
