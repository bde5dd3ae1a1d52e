"""Balanced sums against sums of pictures that are there as often in every class."""

from __future__ import annotations

import numpy as np
import torch

from sapwood.functional.balance import balanced_sums, balancing_weights
from sapwood.functional.statistics import one_hot

DIM = 5


def sums(x: torch.Tensor, y: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = x.double()
    return x.T @ x, x.T @ one_hot(y, classes), torch.bincount(y, minlength=classes)


def uneven(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    y = torch.tensor([0] * 40 + [1] * 7 + [3] * 1)
    return torch.randn(len(y), DIM, generator=rng, dtype=torch.float64) + 2 * torch.eye(DIM, dtype=torch.float64)[y], y


def test_sums_of_uneven_classes_by_hand() -> None:
    x, y = uneven()
    gram, cross = balanced_sums(*sums(x, y, 4))
    rows, labels = x.numpy(), y.numpy()
    within, between, expected = np.zeros((DIM, DIM)), np.zeros((DIM, DIM)), np.zeros((DIM, 4))
    size = 48 / 3
    for label in (0, 1, 3):
        own = rows[labels == label]
        mean = own.mean(0)
        within += (own - mean).T @ (own - mean)
        between += size * np.outer(mean, mean)
        expected[:, label] = size * mean
    np.testing.assert_allclose(gram.numpy(), within + between, atol=1e-10)
    np.testing.assert_allclose(cross.numpy(), expected, atol=1e-10)
    assert torch.equal(gram, gram.T)


def test_each_picture_of_a_class_taken_equally_often_changes_only_the_scatter_around_means() -> None:
    # Of points that lie on their class's mean there is no scatter: repeating them is what balancing stands for.
    means = torch.randn(3, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    few, many = torch.tensor([0] * 6 + [1] * 2 + [2]), torch.tensor([0] * 3 + [1] * 3 + [2] * 3)
    gram, cross = balanced_sums(*sums(means[few], few, 3))
    even_gram, even_cross, _ = sums(means[many], many, 3)
    torch.testing.assert_close(gram, even_gram, atol=1e-12, rtol=0)
    torch.testing.assert_close(cross, even_cross, atol=1e-12, rtol=0)


def test_classes_of_one_size_stay_bit_for_bit() -> None:
    rng = torch.Generator().manual_seed(2)
    y = torch.arange(3).repeat(4)
    gram, cross, count = sums(torch.randn(12, DIM, generator=rng), y, 4)
    same_gram, same_cross = balanced_sums(gram, cross, count)
    assert torch.equal(same_gram, gram)
    assert torch.equal(same_cross, cross)


def test_directions_are_those_of_discriminant_analysis_with_equal_priors() -> None:
    """Of two classes around the origin, whatever their numbers: regression and discriminant are parallel (Fisher)."""
    rng = np.random.default_rng(3)
    spread = rng.normal(size=(DIM, DIM))
    mean = rng.normal(size=DIM)
    parts = [rng.normal(size=(count, DIM)) @ spread for count in (400, 8)]
    x = np.concatenate([part - part.mean(0) + sign * mean for part, sign in zip(parts, (1, -1), strict=True)])
    y = np.repeat([0, 1], (400, 8))
    gram, cross = balanced_sums(*sums(torch.from_numpy(x), torch.from_numpy(y), 2))
    found = torch.linalg.solve(gram, cross).numpy()
    found = found[:, 1] - found[:, 0]
    centred = x - np.where(y == 0, 1, -1)[:, None] * mean
    fisher = np.linalg.solve(centred.T @ centred / len(x), -2 * mean)
    assert found @ fisher / np.linalg.norm(found) / np.linalg.norm(fisher) > 1 - 1e-9


def test_weights_make_classes_weigh_the_same() -> None:
    weights = balancing_weights(torch.tensor([3, 3, 0, 3, 7, 7]))
    assert weights.sum().item() == 6
    assert [weights[0].item() * 3, weights[2].item(), weights[4].item() * 2] == [2, 2, 2]
