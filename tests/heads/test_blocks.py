"""Heads that are fitted from sums look at a block of features at a time, and learn what they would from all at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sapwood.data.rows import BLOCK
from sapwood.functional.balance import balancing_weights
from sapwood.functional.statistics import holdout_errors, loo_residuals, one_hot, ridge_solve
from sapwood.heads import HEADS, Features, PooledHead
from sapwood.heads.strength import STRENGTHS

CLASSES, DIM, COUNT = 6, 12, 2 * BLOCK + 501


class Watched:
    """Rows that are told how many of them are asked for at once."""

    device = torch.device("cpu")

    def __init__(self, rows: Tensor) -> None:
        self.rows, self.shape, self.most = rows, rows.shape, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        found = self.rows[index]
        self.most = max(self.most, len(found))
        return found


def drawn(count: int, seed: int) -> Features:
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(9))
    y = torch.randint(0, CLASSES, (count,), generator=rng) * torch.randint(0, 2, (count,), generator=rng)
    return Features(centres[y] + 2 * torch.randn(count, DIM, generator=rng), y)


def fitted(name: str, data: Features, held: Features | None, *, balanced: bool = False, **settings: Any) -> PooledHead:
    kind = HEADS[name]
    head = kind(kind.Config(**settings), DIM)
    assert isinstance(head, PooledHead)
    head.grow(CLASSES, torch.Generator().manual_seed(0))
    head.balanced = balanced
    watched = [None if part is None else Features(Watched(part.x), part.y) for part in (data, held)]
    head.fit(watched[0], watched[1], torch.Generator().manual_seed(1))
    head.learn_known(watched[0], watched[1], stays=True)
    assert max(part.x.most for part in watched if part is not None) <= BLOCK
    return head


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("validation", [0, 40, BLOCK + 900])
@pytest.mark.parametrize("projection", [None, 30])
def test_ridge_over_many_blocks_is_ridge_over_all(projection: int | None, validation: int, balanced: bool) -> None:
    data, held = drawn(COUNT, 1), drawn(validation, 2) if validation else None
    head = fitted("ridge", data, held, projection=projection, balanced=balanced)
    h = [head.expand(part.x.double()) if projection is None else torch.relu(part.x.double() @ head.projection.double())
         for part in (data, held) if part is not None]  # fmt: skip
    x, y = torch.cat(h), torch.cat([part.y for part in (data, held) if part is not None])
    torch.testing.assert_close(head.gram, x.T @ x, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(head.cross, x.T @ one_hot(y, CLASSES), rtol=1e-12, atol=1e-9)
    roots = [(balancing_weights(part.y) if balanced else torch.ones(len(part.y)).double()).sqrt()[:, None]
             for part in (data, held) if part is not None]  # fmt: skip
    rows, target = h[0] * roots[0], one_hot(data.y, CLASSES) * roots[0]
    if held is None:
        residuals = loo_residuals(rows, target, STRENGTHS)
        share = roots[0].square().mean()
        expected = torch.stack([each.square().sum(1).mean() for each in residuals]) * CLASSES / share
    else:
        shown = one_hot(held.y, CLASSES) * roots[1]
        expected = holdout_errors(rows, target, h[1] * roots[1], shown, STRENGTHS) * CLASSES**2
    torch.testing.assert_close(head.evidence.errors, expected, rtol=1e-8, atol=0)
    if not balanced:
        torch.testing.assert_close(head.solve(), ridge_solve(x.T @ x, x.T @ one_hot(y, CLASSES), head.strength))


def test_a_temperature_by_turns_is_that_of_all_pictures() -> None:
    data = drawn(COUNT, 1)
    head = fitted("ridge", data, None, strength=1.0)
    x, target = data.x.double(), one_hot(data.y, CLASSES)
    order = data.y.argsort(stable=True)
    logits = torch.empty(COUNT, CLASSES).double()
    for start in range(5):
        part, rest = order[start::5], torch.ones(COUNT, dtype=torch.bool)
        rest[part] = False
        logits[part] = x[part] @ ridge_solve(x[rest].T @ x[rest], x[rest].T @ target[rest], 1.0)
    expected = fitted("ridge", drawn(50, 3), None, strength=1.0)
    expected.calibrate_temperature(logits, data.y)
    assert head.temperature == pytest.approx(expected.temperature, rel=1e-6)


@pytest.mark.parametrize("validation", [0, 40, BLOCK + 900])
def test_means_over_many_blocks_are_those_of_all(validation: int) -> None:
    data, held = drawn(COUNT, 1), drawn(validation, 2) if validation else None
    head = fitted("prototype", data, held)
    x, y = (torch.cat([getattr(part, name) for part in (data, held) if part is not None]) for name in ("x", "y"))
    for label in range(CLASSES):
        torch.testing.assert_close(head.mean[label], x[y == label].double().mean(0), rtol=1e-12, atol=1e-12)
    assert torch.equal(head.count, torch.bincount(y))
    torch.testing.assert_close(head.sums.gram, x.double().T @ x.double(), rtol=1e-12, atol=1e-9)


def test_what_known_pictures_are_like_is_measured_on_every_class() -> None:
    head = fitted("prototype", drawn(COUNT, 1), None)
    shares = torch.bincount(head.known.labels, minlength=CLASSES) / len(head.known.labels)
    assert len(head.known.distances) == 1000
    assert shares.min() > 0.05
    assert shares[0] == pytest.approx(float((drawn(COUNT, 1).y == 0).double().mean()), abs=0.02)


def test_ten_thousand_classes_take_no_row_a_picture_of_them() -> None:
    kind = HEADS["ridge"]
    head = kind(kind.Config(), 8)
    head.grow(10_000, torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(1)
    x, y = torch.randn(2 * BLOCK, 8, generator=rng), torch.arange(2 * BLOCK) % 5000 * 2
    head.observe(Features(x, y))
    expected = torch.zeros(10_000, 8).double().index_add_(0, y, x.double())
    torch.testing.assert_close(head.cross.T, expected, rtol=0, atol=1e-12)
