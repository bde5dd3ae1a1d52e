"""Directions of tasks, shares of energy and what they say of a picture's task, against sums written out in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sapwood.functional import gates


def features(rng: torch.Generator, count: int = 60) -> Tensor:
    """Rows with singular values of clearly different size."""
    left = torch.linalg.qr(torch.randn(count, 6, generator=rng, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(6, 6, generator=rng, dtype=torch.float64))[0]
    return left @ torch.diag(torch.tensor([9.0, 5, 3, 1, 0.5, 0.1], dtype=torch.float64)) @ right.T


def projector(basis: Tensor) -> np.ndarray:
    return basis.numpy() @ basis.numpy().T


def test_new_directions_are_those_an_svd_finds_outside_the_held(rng: torch.Generator) -> None:
    z = features(rng)
    held = torch.linalg.qr(torch.randn(6, 2, generator=rng, dtype=torch.float64))[0]
    found = gates.new_directions(z.T @ z / len(z), held, energy=0.9)
    outside = z.numpy() @ (np.eye(6) - projector(held))
    _, sizes, right = np.linalg.svd(outside)
    kept = 1 - (sizes**2).sum() / (z.numpy() ** 2).sum()
    count = 0
    while kept < 0.9:
        kept += sizes[count] ** 2 / (z.numpy() ** 2).sum()
        count += 1
    assert found.shape == (6, count)
    assert count >= 2
    assert np.allclose(projector(found), right[:count].T @ right[:count], atol=1e-8)
    assert np.allclose((held.T @ found).numpy(), 0, atol=1e-12)


def test_at_least_one_direction_unless_there_is_none(rng: torch.Generator) -> None:
    z = features(rng)
    moment = z.T @ z / len(z)
    leading = torch.from_numpy(np.linalg.svd(z.numpy())[2][:5].T.copy())
    last = np.linalg.svd(z.numpy())[2][5:]
    assert gates.new_directions(moment, leading, energy=0.9, least=0).shape == (6, 0)
    found = gates.new_directions(moment, leading, energy=0.9)
    assert np.allclose(projector(found), last.T @ last, atol=1e-8)
    everything = torch.eye(6, dtype=torch.float64)
    assert gates.new_directions(moment, everything, energy=1.0).shape == (6, 0)
    inside = z @ leading @ leading.T  # nothing but round-off lies outside of what is held
    inside += 1e-7 * torch.randn(inside.shape, generator=rng, dtype=torch.float64)
    assert gates.new_directions(inside.T @ inside / len(z), leading, energy=0.9).shape == (6, 0)


def test_shares_of_energy(rng: torch.Generator) -> None:
    z = features(rng)
    basis = torch.linalg.qr(torch.randn(6, 5, generator=rng, dtype=torch.float64))[0]
    parts = [basis[:, :2], basis[:, 2:2], basis[:, 2:]]  # the second task has no directions
    rows = z.numpy()
    shares = np.stack([((rows @ part.numpy()) ** 2).sum(1) / (rows**2).sum(1) for part in parts], 1)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    unit_moment = torch.from_numpy(unit.T @ unit / len(unit))
    means = [gates.mean_share(unit_moment, part).item() for part in parts]
    assert np.allclose(means, shares.mean(0), atol=1e-12)
    weights = torch.zeros(5, 3, dtype=torch.float64)
    weights[:2, 0], weights[2:, 2] = 1 / means[0], 1 / means[2]
    ratios = gates.energy_ratios(z, basis, weights)
    assert np.allclose(ratios[:, [0, 2]], shares[:, [0, 2]] / shares.mean(0)[[0, 2]], atol=1e-12)
    assert not ratios[:, 1].any()
    assert np.allclose(ratios.mean(0)[[0, 2]], 1)
    assert np.allclose(gates.energy_ratios(1e-3 * z, basis, weights), ratios)  # the length of a feature says nothing
    assert not gates.energy_ratios(torch.zeros(1, 6), basis.float(), weights.float()).any()


def test_offsets_by_hand() -> None:
    scores = torch.tensor([[1.0, 0.0], [0.25, 0.25], [0.0, 2.0]], dtype=torch.float64)
    # Channel 0 is nobody's, 1 and 2 belong to a task each, 3 to both.
    members = torch.tensor([[False, True, False, True], [False, False, True, True]])
    offsets = gates.task_offsets(scores, members, sharpness=2.0, weight=0.5, confidence=0.7)
    sure, unsure = math.log(1 / (1 + math.exp(-2))), math.log(1 / (1 + math.exp(2)))
    surer, less = math.log(1 / (1 + math.exp(-4))), math.log(1 / (1 + math.exp(4)))
    expected = [[0, sure, unsure, sure], [0, 0, 0, 0], [0, less, surer, surer]]
    assert np.allclose(offsets, 0.5 * np.array(expected), atol=1e-12)
    everyone = gates.task_offsets(scores, members, sharpness=2.0, weight=0.5, confidence=0.0)
    assert np.allclose(everyone[1], [0, *3 * [0.5 * math.log(0.5)]])
    assert not gates.task_offsets(scores[:, :1], members[:1], sharpness=2.0, weight=1.0, confidence=0.5).any()


@pytest.mark.parametrize("size", [2, 5])
def test_an_offset_depends_on_its_picture_alone(rng: torch.Generator, size: int) -> None:
    scores = torch.rand(size, 3, generator=rng)
    members = torch.eye(3, dtype=torch.bool)
    settings = {"sharpness": 4.0, "weight": 1.0, "confidence": 0.5}
    together = gates.task_offsets(scores, members, **settings)
    for row, expected in zip(scores, together, strict=True):
        torch.testing.assert_close(gates.task_offsets(row[None], members, **settings)[0], expected)
