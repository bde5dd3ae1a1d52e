from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.linear_model import Ridge

from sapwood.functional import statistics


def data(rng: torch.Generator, n: int, d: int, k: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(n, d, generator=rng, dtype=torch.float64)
    return x, x[:, :k] + 0.3 * torch.randn(n, k, generator=rng, dtype=torch.float64)


def sklearn_ridge(x: torch.Tensor, y: torch.Tensor, strength: float) -> np.ndarray:
    return Ridge(alpha=strength, fit_intercept=False, solver="svd").fit(x.numpy(), y.numpy()).coef_.T


@pytest.mark.parametrize("strength", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("n", [5, 40])
def test_ridge_equals_scikit_learn(rng, n, strength):
    x, y = data(rng, n, 8)
    assert np.allclose(statistics.ridge_solve(x.T @ x, x.T @ y, strength), sklearn_ridge(x, y, strength), atol=1e-9)


def test_ridge_of_a_singular_gram_has_the_least_norm(rng):
    x, y = data(rng, 5, 8)
    found = statistics.ridge_solve(x.T @ x, x.T @ y, 0.0)
    assert np.allclose(found, np.linalg.pinv(x.numpy()) @ y.numpy(), atol=1e-8)
    big = 1e6 * x
    assert np.isfinite(statistics.ridge_solve(big.T @ big, big.T @ y, 1e-8).numpy()).all()


@pytest.mark.parametrize(("n", "d"), [(6, 10), (10, 10), (25, 10)])
def test_leave_one_out_equals_fitting_n_models(rng, n, d):
    x, y = data(rng, n, d)
    strengths = [1e-6, 0.1, 10.0]
    for strength, residual in zip(strengths, statistics.loo_residuals(x, y, strengths), strict=True):
        for i in range(n):
            rest = [j for j in range(n) if j != i]
            expected = y[i].numpy() - x[i].numpy() @ sklearn_ridge(x[rest], y[rest], strength)
            assert np.allclose(residual[i], expected, rtol=1e-5, atol=1e-7)
    errors = statistics.loo_errors(x, y, strengths)
    assert errors[1].item() == pytest.approx(next(statistics.loo_residuals(x, y, [0.1])).square().mean().item())


def test_leave_one_out_survives_repeated_and_zero_rows(rng):
    x, y = data(rng, 4, 6)
    x, y = torch.cat([x, x, torch.zeros(1, 6)]), torch.cat([y, y, torch.zeros(1, 3)])
    errors = statistics.loo_errors(x, y, [1e-8, 1.0, 1e8])
    assert torch.isfinite(errors).all()
    assert errors[0] < errors[2]  # every row has a twin left in


@pytest.mark.parametrize("n", [5, 30])
def test_holdout_errors_equal_a_fit_for_each_strength(rng, n):
    (x, y), (x_held, y_held) = data(rng, n, 8), data(rng, 7, 8)
    strengths = [1e-2, 1.0, 1e4]
    expected = [np.mean((x_held.numpy() @ sklearn_ridge(x, y, s) - y_held.numpy()) ** 2) for s in strengths]
    assert np.allclose(statistics.holdout_errors(x, y, x_held, y_held, strengths), expected, rtol=1e-9)


def test_drift_map_finds_a_linear_drift(rng):
    before = torch.randn(60, 9, generator=rng)
    P = torch.eye(9) + 0.3 * torch.randn(9, 9, generator=rng)
    found = statistics.drift_map(before, before @ P.T, 1e-12)
    assert found.dtype == torch.float64
    assert np.allclose(found, P, atol=1e-5)


def test_drift_map_falls_back_to_the_identity(rng):
    before = torch.randn(20, 9, generator=rng)
    after = before + torch.randn(20, 9, generator=rng)
    assert np.allclose(statistics.drift_map(before, after, 1e9), np.eye(9), atol=1e-6)
    assert np.allclose(statistics.drift_map(before, before, 0.1), np.eye(9), atol=1e-12)
    # Directions without pictures are left alone, however weak the regularisation.
    flat = before * torch.tensor([1.0] * 4 + [0.0] * 5)
    assert np.allclose(statistics.drift_map(flat, 2 * flat, 1e-9)[4:], np.eye(9)[4:], atol=1e-12)
    assert np.allclose(statistics.drift_map(torch.zeros(2, 3), torch.zeros(2, 3), 0.1), np.eye(3))
    with pytest.raises(ValueError, match="must be equal"):
        statistics.drift_map(before, after[:5], 0.1)


def test_drift_map_strength_is_relative(rng):
    before = torch.randn(30, 5, generator=rng)
    after = before + 0.1 * torch.randn(30, 5, generator=rng)
    one = statistics.drift_map(before, after, 0.5)
    assert np.allclose(one, statistics.drift_map(100 * before, 100 * after, 0.5), atol=1e-6)
    centre = (before.double().T @ before.double()).diagonal().mean().item()
    correction = sklearn_ridge(before.double(), (after - before).double(), 0.5 * centre)
    assert np.allclose(one, np.eye(5) + correction.T, atol=1e-6)


def test_class_means_and_one_hot():
    x, y = torch.tensor([[1.0, 0], [3, 2], [7, 7]]), torch.tensor([2, 2, 0])
    mean, count = statistics.class_means(x, y, 4)
    assert mean.tolist() == [[7, 7], [0, 0], [2, 1], [0, 0]]
    assert count.tolist() == [1, 0, 2, 0]
    assert statistics.one_hot(y, 3).tolist() == [[0, 0, 1], [0, 0, 1], [1, 0, 0]]


def test_triangle_round_trip(rng):
    half = torch.randn(3, 5, 5, generator=rng, dtype=torch.float64)
    matrices = half + half.mT
    packed = statistics.pack_triangle(matrices)
    assert packed.shape == (3, 15)
    assert packed.dtype == torch.float64
    assert torch.equal(statistics.unpack_triangle(packed), matrices)
    assert statistics.unpack_triangle(torch.zeros(0, 15)).shape == (0, 5, 5)
    with pytest.raises(ValueError, match="7 numbers"):
        statistics.unpack_triangle(torch.zeros(7))


def test_gaussian_samples_have_the_moments_asked_for(rng):
    mean, root = torch.tensor([1.0, -2.0, 0.5]), torch.randn(3, 3, generator=rng)
    covariance = root @ root.T
    drawn = statistics.sample_gaussian(mean, covariance, 50_000, 0.0, rng).numpy()
    assert np.allclose(drawn.mean(0), mean, atol=0.05)
    assert np.allclose(np.cov(drawn.T), covariance, atol=0.15)
    wide = statistics.sample_gaussian(mean, covariance, 50_000, 1.0, rng).numpy()
    extra = covariance.trace().item() / 3
    assert np.allclose(np.cov(wide.T), covariance + extra * torch.eye(3), atol=0.25)


def test_gaussian_samples_of_singular_covariances(rng):
    mean = torch.tensor([1.0, 2.0])
    line = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    drawn = statistics.sample_gaussian(mean, line, 100, 0.0, rng) - mean
    assert torch.allclose(drawn[:, 0], drawn[:, 1], atol=1e-6)
    assert drawn[:, 0].std() > 0.5
    slightly_negative = torch.diag(torch.tensor([1.0, -1e-3]))
    assert torch.isfinite(statistics.sample_gaussian(mean, slightly_negative, 100, 0.0, rng)).all()
    assert torch.equal(statistics.sample_gaussian(mean, torch.zeros(2, 2), 3, 1.0, rng), mean.double().expand(3, 2))


def test_gaussian_samples_depend_on_the_generator_alone():
    mean, covariance = torch.zeros(3), torch.eye(3)
    torch.manual_seed(1)
    one = statistics.sample_gaussian(mean, covariance, 4, 0.0, torch.Generator().manual_seed(5))
    torch.manual_seed(2)
    assert torch.equal(one, statistics.sample_gaussian(mean, covariance, 4, 0.0, torch.Generator().manual_seed(5)))


def smoothed_nll(logits: np.ndarray, target: np.ndarray, temperature: float) -> float:
    z = logits / temperature
    z = z - z.max(1, keepdims=True)
    logp = z - np.log(np.exp(z).sum(1, keepdims=True))
    n, k = logits.shape
    goal = np.full((n, k), 1 / (n + 2) / (k - 1))
    goal[np.arange(n), target] = 1 - 1 / (n + 2)
    return float(-(goal * logp).sum(1).mean())


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_temperature_minimises_the_likelihood(rng, scale):
    target = torch.randint(4, (300,), generator=rng)
    logits = scale * (torch.randn(300, 4, generator=rng) + 2 * torch.nn.functional.one_hot(target, 4))
    found = statistics.fit_temperature(logits, target)
    best = minimize_scalar(
        lambda t: smoothed_nll(logits.numpy().astype(np.float64), target.numpy(), math.exp(t)),
        bounds=(math.log(1e-4), math.log(1e4)),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert found == pytest.approx(math.exp(best.x), rel=1e-4)


def test_temperature_undoes_a_scale(rng):
    """Targets drawn from softmax(z) ask for T = s when the logits are s z."""
    z = 2 * torch.randn(20_000, 3, generator=rng)
    target = torch.multinomial(z.softmax(1), 1, generator=rng).flatten()
    assert statistics.fit_temperature(10 * z, target) == pytest.approx(10, rel=0.05)


def test_temperature_with_few_pictures():
    right = torch.eye(3)
    assert statistics.fit_temperature(right[:0], torch.tensor([], dtype=torch.int64)) is None
    assert statistics.fit_temperature(torch.ones(4, 1), torch.zeros(4, dtype=torch.int64)) is None
    # All three are right: by Platt's targets the true class gets 4/5, not 1.
    temperature = statistics.fit_temperature(right, torch.arange(3))
    surer = statistics.fit_temperature(right, torch.arange(3), earlier=100)
    assert temperature is not None
    assert (right / temperature).softmax(1).diagonal().tolist() == pytest.approx([0.8] * 3, abs=1e-4)
    assert surer is not None  # with a hundred that told before: 104/105
    assert (right / surer).softmax(1).diagonal().tolist() == pytest.approx([104 / 105] * 3, abs=1e-4)


def test_temperature_leaves_out_classes_that_are_ruled_out(rng):
    logits = 3 * torch.randn(60, 2, generator=rng)
    target = (torch.rand(60, generator=rng) < logits.softmax(1)[:, 1]).long()
    expected = statistics.fit_temperature(logits, target)
    never = torch.full((60, 3), -torch.inf)
    wider = torch.cat([never[:, :1], logits, never], 1)  # two classes of six may be it
    assert statistics.fit_temperature(wider, target + 1) == pytest.approx(expected, rel=1e-6)
    wrong = torch.cat([never, logits[:, :1], logits], 1)[:7]  # the true class is ruled out: no temperature mends it
    both = statistics.fit_temperature(torch.cat([wider, wrong]), torch.cat([target + 1, torch.zeros(7).long()]))
    assert both == pytest.approx(expected, rel=1e-6)
    assert statistics.fit_temperature(wrong, torch.zeros(7).long()) is None
    assert statistics.fit_temperature(wider[:, :2], torch.ones(60).long()) is None  # one class left for each
