from __future__ import annotations

import numpy as np
import pytest
import torch

from sapwood.functional import low_rank


def features(rng: torch.Generator) -> torch.Tensor:
    """200 rows with singular values of clearly different size."""
    left = torch.linalg.qr(torch.randn(200, 6, generator=rng, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(6, 6, generator=rng, dtype=torch.float64))[0]
    return left @ torch.diag(torch.tensor([9.0, 5, 3, 1, 0.5, 0.1], dtype=torch.float64)) @ right.T


def test_delta_is_the_dense_update(rng):
    x, A, B = (torch.randn(*shape, generator=rng) for shape in [(2, 7, 5), (3, 5), (4, 3)])
    dense = 0.5 * B.numpy() @ A.numpy()
    assert np.allclose(low_rank.compose(A, B, 0.5), dense, atol=1e-6)
    assert np.allclose(low_rank.lora_delta(x, A, B, 0.5), x.numpy() @ dense.T, atol=1e-5)


@pytest.mark.parametrize(("energy", "expected"), [(0.5, 1), (0.69, 1), (0.71, 2), (0.985, 3), (1.0, 6), (0.0, 0)])
def test_basis_holds_the_energy_asked_for(rng, energy, expected):
    x = features(rng)
    basis = low_rank.orthonormal_basis(x.T @ x, energy=energy)
    right = np.linalg.svd(x.numpy())[2][:expected].T
    assert basis.shape == (6, expected)
    assert np.allclose(basis @ basis.T, right @ right.T, atol=1e-8)  # signs are free, the projector is not


def test_rank_limits_and_roundoff_is_no_direction(rng):
    x = features(rng)[:, :4] @ torch.randn(4, 9, generator=rng, dtype=torch.float64)
    assert low_rank.orthonormal_basis(x.T @ x, energy=1.0).shape == (9, 4)
    assert low_rank.orthonormal_basis(x.T @ x, rank=2).shape == (9, 2)
    assert low_rank.orthonormal_basis(torch.zeros(3, 3)).shape == (3, 0)


def test_basis_grows_beyond_the_one_held(rng):
    old, x = features(rng), torch.randn(50, 6, generator=rng, dtype=torch.float64)
    held = low_rank.orthonormal_basis(old.T @ old, energy=0.9)
    more = low_rank.orthonormal_basis(x.T @ x, energy=0.8, basis=held)
    whole = torch.cat([held, more], 1)
    assert torch.allclose(whole.T @ whole, torch.eye(whole.shape[1], dtype=torch.float64), atol=1e-12)
    share = 1 - low_rank.project_out(x, whole).square().sum() / x.square().sum()
    without_last = 1 - low_rank.project_out(x, whole[:, :-1]).square().sum() / x.square().sum()
    assert without_last < 0.8 <= share
    leading = np.linalg.svd((x - x @ held @ held.T).numpy())[2][: more.shape[1]].T
    assert np.allclose(more @ more.T, leading @ leading.T, atol=1e-8)
    complete = low_rank.orthonormal_basis(torch.eye(6), basis=torch.eye(6))
    assert complete.shape == (6, 0)


def test_project_out_leaves_nothing_in_the_span(rng):
    basis = torch.linalg.qr(torch.randn(8, 3, generator=rng, dtype=torch.float64))[0]
    x = torch.randn(4, 8, generator=rng, dtype=torch.float64)
    rest = low_rank.project_out(x, basis)
    assert torch.allclose(rest @ basis, torch.zeros(4, 3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(low_rank.project_out(rest, basis), rest, atol=1e-12)
    assert torch.equal(low_rank.project_out(x, basis[:, :0]), x)


def test_energy_is_a_share():
    with pytest.raises(ValueError, match=r"0\.\.1, got 95"):
        low_rank.orthonormal_basis(torch.eye(2), energy=95)


# --- gradient projection memories, against singular values of the matrices themselves


class Rules:
    """DualGPM as it is written down, one matrix at a time; bases as (matrix, whether its span is what is free)."""

    def __init__(self, energy: str) -> None:
        self.energy, self.basis, self.free = energy, np.zeros((9, 0)), False

    def singular(self, projector: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Left singular vectors and energies of what a projector leaves of the second moment, or of the features."""
        matrix = x.T @ x / len(x) if self.energy == "moment" else x.T / len(x) ** 0.5
        left, values, _ = np.linalg.svd(projector @ matrix)
        return left, np.pad(values**2, (0, len(left) - len(values)))

    def add(self, x: np.ndarray, threshold: float) -> None:
        width = x.shape[1]
        _, energies = self.singular(np.eye(width), x)
        total = energies.sum()
        if not self.basis.shape[1] and not self.free:
            left, _ = self.singular(np.eye(width), x)
            count = max(1, sum(energies.cumsum() / total < threshold))
            self.basis = left[:, :count]
        elif not self.free:
            left, energies = self.singular(np.eye(width) - self.basis @ self.basis.T, x)
            share, count = 1 - energies.sum() / total, 0
            while share < threshold:
                share += energies[count] / total
                count += 1
            self.basis = np.hstack([self.basis, left[:, :count]])
        else:
            left, energies = self.singular(self.basis @ self.basis.T, x)
            share, count = energies.sum() / total, 0
            while share >= 1 - threshold and count < self.basis.shape[1]:
                share -= energies[count] / total
                count += 1
            if count:
                rest = self.basis - left[:, :count] @ left[:, :count].T @ self.basis
                self.basis = np.linalg.svd(rest)[0][:, : self.basis.shape[1] - count]
        if not self.free and self.basis.shape[1] > width / 2:
            self.basis, self.free = np.linalg.svd(self.basis)[0][:, self.basis.shape[1] :], True


def rounds_of_features(rng: torch.Generator, count: int, width: int = 9) -> list[torch.Tensor]:
    """Rows that lie mostly in a few directions, other ones in every round."""
    scale = torch.logspace(0.3, -1.5, width, dtype=torch.float64)
    turns = [torch.linalg.qr(torch.randn(width, width, generator=rng, dtype=torch.float64))[0] for _ in range(count)]
    return [(torch.randn(40, width, generator=rng, dtype=torch.float64) * scale) @ turn for turn in turns]


@pytest.mark.parametrize("energy", ["moment", "feature"])
@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95, 0.99])
def test_dual_gpm_is_what_its_rules_say(rng, energy, threshold):
    rules, bases, kinds, counts = Rules(energy), None, [], []
    for x in rounds_of_features(rng, 7):
        rules.add(x.numpy(), threshold)
        moment = x.T @ x / len(x)
        before, bases = bases, low_rank.gpm_update(bases, moment, threshold, energy=energy)
        assert bases.kind == ("retain" if rules.free else "remove")
        assert bases.vectors.shape == rules.basis.shape
        assert np.allclose(bases.vectors @ bases.vectors.T, rules.basis @ rules.basis.T, atol=1e-9)
        assert 2 * bases.vectors.shape[1] <= 9
        directions = low_rank.gpm_directions(before, moment, threshold, energy=energy)
        assert np.allclose(protected(bases), protected(before) + (directions @ directions.T).numpy(), atol=1e-9)
        kinds.append(bases.kind)
        counts.append(directions.shape[1])
    assert kinds == sorted(kinds)  # it never goes back
    assert {"remove", "retain"} <= set(kinds) or threshold in (0.5, 0.99)
    assert counts[0] >= 1


def protected(bases: low_rank.Bases | None) -> np.ndarray:
    """Projector on the protected directions."""
    if bases is None:
        return np.zeros((9, 9))
    projector = (bases.vectors @ bases.vectors.T).numpy()
    return projector if bases.kind == "remove" else np.eye(9) - projector


def test_the_first_round_stays_below_the_threshold_and_protects_something(rng):
    moment = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0]))  # energies 9, 4, 1, 0 of 14
    for threshold, expected in [(0.1, 1), (0.64, 1), (0.65, 1), (0.92, 1), (0.93, 2), (0.99, 2), (1.0, 2)]:
        assert low_rank.gpm_directions(None, moment, threshold).shape == (4, expected)
    for threshold, expected in [(0.5, 1), (0.51, 1), (0.84, 2), (0.82, 1)]:  # 3, 2, 1 of 6
        assert low_rank.gpm_directions(None, moment, threshold, energy="feature").shape == (4, expected)
    assert low_rank.gpm_directions(None, torch.zeros(4, 4), 0.9).shape == (4, 0)


def test_more_than_half_from_the_start_keeps_what_is_free():
    """Where the first round protects most directions, what is kept is the complement, not the same vectors."""
    bases = low_rank.gpm_update(None, torch.diag(torch.tensor([4.0, 4.0, 4.0, 0.5])), 0.999)
    assert bases.kind == "retain"
    assert bases.vectors.abs().flatten().tolist() == pytest.approx([0, 0, 0, 1])
    full = low_rank.gpm_update(bases, torch.eye(4), 1.0)
    assert full.kind == "retain"
    assert full.vectors.shape == (4, 0)
    assert low_rank.gpm_update(full, torch.eye(4), 0.9).vectors.shape == (4, 0)
    assert low_rank.free_directions(full, torch.eye(4), 2).shape == (4, 0)


def test_no_new_direction_leaves_the_bases_alone(rng):
    (first,) = rounds_of_features(rng, 1)
    for threshold in (0.7, 0.999):
        bases = low_rank.gpm_update(None, first.T @ first, threshold, energy="feature")
        assert bases.kind == ("remove" if threshold == 0.7 else "retain")
        again = low_rank.gpm_update(bases, first.T @ first, threshold / 2, energy="feature")
        assert np.allclose(protected(again), protected(bases), atol=1e-9)


@pytest.mark.parametrize("threshold", [0.7, 0.999])
def test_free_directions_are_left_singular_vectors_of_the_free_part(rng, threshold):
    first, second = rounds_of_features(rng, 2)
    bases = low_rank.gpm_update(None, first.T @ first, threshold, energy="feature")
    assert bases.kind == ("remove" if threshold == 0.7 else "retain")
    moment = second.T @ second
    left = np.linalg.svd((np.eye(9) - protected(bases)) @ moment.numpy())[0][:, :2]
    found = low_rank.free_directions(bases, moment, 2).numpy()
    assert np.allclose(found @ found.T, left @ left.T, atol=1e-8)
    for column in range(2):  # in order of their singular values
        assert abs(found[:, column] @ left[:, column]) == pytest.approx(1, abs=1e-8)
    assert np.abs(protected(bases) @ found).max() < 1e-12
    rest = round(9 - np.trace(protected(bases)))
    assert low_rank.free_directions(bases, moment, 20).shape == (9, rest)  # no more than there are
    plain = low_rank.free_directions(None, moment, 3).numpy()
    left = np.linalg.svd(moment.numpy())[0][:, :3]
    assert np.allclose(plain @ plain.T, left @ left.T, atol=1e-8)


def test_threshold_is_a_share():
    with pytest.raises(ValueError, match=r"threshold must lie in 0\.\.1, got 95"):
        low_rank.gpm_update(None, torch.eye(2), 95)
