from __future__ import annotations

import numpy as np
import pytest
import torch

from sapwood.functional import openset
from sapwood.functional.openset import Sums


def sums_of(x: torch.Tensor, y: torch.Tensor, classes: int) -> Sums:
    x = x.double()
    total = torch.stack([x[y == c].sum(0) for c in range(classes)])
    return Sums(total, torch.bincount(y, minlength=classes), x.T @ x)


@pytest.fixture
def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(3).repeat_interleave(40)
    mixing = torch.randn(5, 5, generator=generator)
    return 3 * torch.randn(3, 5, generator=generator)[y] + torch.randn(120, 5, generator=generator) @ mixing + 7, y


def test_distances_are_those_of_the_definition(drawn):
    x, y = drawn
    rows, labels = x.double().numpy(), y.numpy()
    centred = np.concatenate([rows[labels == c] - rows[labels == c].mean(0) for c in range(3)])
    covariance = centred.T @ centred / (120 - 3)
    inverse = np.linalg.inv(openset.shrunk(torch.from_numpy(covariance), 117).numpy())
    means = [rows[labels == c].mean(0) for c in range(3)]
    expected = [min((row - m) @ inverse @ (row - m) for m in means) for row in rows[::17]]
    gaussians = openset.shared_gaussians(sums_of(x, y, 3))
    assert openset.nearest_distance(x[::17], gaussians).tolist() == pytest.approx(expected, rel=1e-8)


def test_shrinkage_by_the_formula():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    s, n, p = x.T @ x / 6, 6, 4
    t, q = s.trace().item(), (s @ s).trace().item()
    r = ((1 - 2 / p) * q + t * t) / ((n + 1 - 2 / p) * (q - t * t / p))
    assert 0 < r < 1
    assert torch.allclose(openset.shrunk(s, n), (1 - r) * s + r * t / p * torch.eye(p))
    assert torch.equal(openset.shrunk(torch.zeros(3, 3), 5), torch.eye(3, dtype=torch.float64))
    thin = torch.ones(3, 1) @ torch.ones(1, 3)  # rank one, of a single degree of freedom: no inverse without
    assert torch.linalg.eigvalsh(openset.shrunk(thin, 1)).min() > 0.1


def test_classes_without_pictures_attract_nothing(drawn):
    x, y = drawn
    three, five = openset.shared_gaussians(sums_of(x, y, 3)), openset.shared_gaussians(sums_of(x, y, 5))
    assert five.mean.shape == (3, 5)
    assert torch.equal(openset.nearest_distance(x, three), openset.nearest_distance(x, five))


def test_one_picture_a_class_says_nothing(drawn):
    x, y = drawn
    assert openset.shared_gaussians(sums_of(x[[0, 50, 100]], y[[0, 50, 100]], 3)) is None
    assert openset.shared_gaussians(sums_of(x[:2], y[:2], 1)) is not None  # one class is enough


def test_held_out_pictures_are_not_in_the_classes(drawn):
    x, y = drawn
    parts = openset.folds(y, 5)
    assert torch.cat(parts).sort().values.tolist() == list(range(120))
    assert all((y[part] == c).sum() == 8 for part in parts for c in range(3))
    distances, labels = openset.held_out_distances(sums_of(x, y, 3), x, y, parts)
    assert torch.equal(labels, torch.cat([y[part] for part in parts]))
    rest = torch.ones(120, dtype=torch.bool)
    rest[parts[0]] = False
    expected = openset.nearest_distance(x[parts[0]], openset.shared_gaussians(sums_of(x[rest], y[rest], 3)))
    assert distances[:24].tolist() == pytest.approx(expected.tolist(), rel=1e-8)
    inside = openset.nearest_distance(x, openset.shared_gaussians(sums_of(x, y, 3)))
    assert distances.mean() > inside.mean()


def test_pictures_whose_class_is_gone_without_them_do_not_count(drawn):
    x, y = drawn
    chosen = torch.tensor([*range(40), 45])  # class 1 has one picture
    distances, labels = openset.held_out_distances(
        sums_of(x[chosen], y[chosen], 2), x[chosen], y[chosen], openset.folds(y[chosen], 5)
    )
    assert len(distances) == len(labels) == 40
    assert not labels.any()


@pytest.mark.parametrize("count", [19, 20, 57, 400])
def test_the_limit_lets_in_what_it_promises(count):
    """Over many draws, a further picture keeps the limit at least 95 times in 100, and not many more."""
    generator = torch.Generator().manual_seed(count)
    draws = torch.rand(1500, count, generator=generator)
    share = float(torch.tensor([openset.limit_of(row) for row in draws]).mean())  # uniform: the limit is the share
    assert 0.945 < share < 0.95 + 1.2 / (count + 1)
    assert openset.limit_of(draws[0, :18]) is None
    assert openset.LEAST == 19
