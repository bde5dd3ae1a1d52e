from __future__ import annotations

import numpy as np
import pytest
import torch

from sapwood.functional.statistics import fit_temperature
from sapwood.heads import Features, PrototypeHead
from sapwood.heads.calibration import Chosen, chosen_beside

DIM = 12


def fitted(*rounds, classes: int = 6) -> PrototypeHead:
    head, generator = PrototypeHead(PrototypeHead.Config(), DIM), torch.Generator().manual_seed(0)
    head.grow(classes, generator)
    for train, held in rounds:
        head.fit(train, held, generator)
    return head


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_logits_are_cosines_to_raw_means(draw, tokens):
    data, held, test = draw(range(6), 9), draw([1, 2], 4), draw(range(6), 3)
    logits = fitted((data, held))(tokens(test.x))
    x, y = torch.cat([data.x, held.x]).numpy(), torch.cat([data.y, held.y]).numpy()
    for i, row in enumerate(test.x.numpy()):
        expected = [cosine(row, x[y == c].mean(0)) for c in range(6)]  # validation pictures have joined
        assert logits[i].tolist() == pytest.approx(expected, abs=1e-5)


def test_order_and_split_of_rounds_make_no_difference(draw, tokens):
    parts = [(draw([0, 1], 7), None), (draw([2, 0], 7), draw([2, 0], 2)), (draw([3, 4, 5], 7), None)]
    x = tokens(draw(range(6), 3).x)
    whole = [p for part in parts for p in part if p is not None]
    batch = fitted((Features(torch.cat([p.x for p in whole]), torch.cat([p.y for p in whole])), None))(x)
    assert torch.allclose(fitted(*parts)(x), batch, atol=1e-6)
    assert torch.allclose(fitted(*reversed(parts))(x), batch, atol=1e-6)


def test_a_class_without_pictures_never_wins(draw, tokens):
    logits = fitted((draw([0, 1], 5), None))(tokens(draw([2, 3], 20).x))
    assert (logits[:, 2:] == -1).all()
    assert (logits.argmax(1) < 2).all()


def test_carry_equals_recomputed_means_under_a_linear_drift(draw, rng):
    P = torch.eye(DIM) + 0.3 * torch.randn(DIM, DIM, generator=rng)
    data = draw([0, 1], 10)
    head = fitted((data, None))
    head.carry(P)
    assert torch.allclose(head.mean, fitted((Features(data.x @ P.T, data.y), None)).mean, atol=1e-4)


def test_temperature_from_validation_pictures_before_they_join(draw, tokens):
    data, held = draw(range(3), 6), draw(range(3), 34)
    apart = fitted((data, None), classes=3)
    expected = fit_temperature(apart(tokens(held.x)), held.y)
    assert fitted((data, held), classes=3).temperature == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("held_out", [0, 4])  # few held-out pictures are tried like the others
def test_temperature_by_leaving_one_out(draw, held_out):
    first, data = draw([0, 1], 6), draw([1, 2], 5).joined(draw([3], 1))
    held = Features(data.x[:held_out], data.y[:held_out])
    rest = Features(data.x[held_out:], data.y[held_out:])
    data = rest.joined(held)
    head = fitted((first, None), classes=4)
    before = Chosen(head.temperature, 12)
    head = fitted((first, None), (rest, held if held_out else None), classes=4)
    x, y = torch.cat([first.x, data.x]).numpy(), torch.cat([first.y, data.y]).numpy()
    rows, labels = [], []
    for i in range(len(first.y), len(y)):
        rest = np.arange(len(y)) != i
        if (y[rest] == y[i]).any():
            rows.append([cosine(x[i], x[rest & (y == c)].mean(0)) for c in range(4)])
            labels.append(y[i])
    assert len(labels) == 10
    found = chosen_beside(before, torch.tensor(rows), torch.tensor(labels), fewest=1)
    assert found is not None
    assert head.temperature == pytest.approx(found.temperature, rel=1e-4)


def test_validation_accuracy_is_measured_before_the_pictures_join(draw, tokens, rng):
    train, held = draw(range(6), 1), draw(range(6), 8)
    held = Features(held.x + 2 * torch.randn(held.x.shape, generator=rng), held.y)
    head = fitted(classes=6)
    facts = head.fit(train, held, rng)
    right = (fitted((train, None))(tokens(held.x)).argmax(1) == held.y).float().mean().item()
    assert facts["validation_accuracy"] == pytest.approx(right)
    assert right < 1
