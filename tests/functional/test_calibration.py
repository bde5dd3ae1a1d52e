from __future__ import annotations

import numpy as np
import pytest
import torch

from sapwood.functional.calibration import expected_calibration_error


def test_by_the_definition():
    random = np.random.default_rng(0)
    score, right = random.random(500), random.random(500) < 0.6
    expected = 0.0
    for low in range(15):
        inside = (score > low / 15) & (score <= (low + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - score[inside].mean())
    found = expected_calibration_error(torch.from_numpy(score), torch.from_numpy(right))
    assert found == pytest.approx(expected)


def test_ends():
    ends, one_right = torch.tensor([0.0, 1.0]), torch.tensor([False, True])
    assert expected_calibration_error(ends, one_right) == 0.0
    assert expected_calibration_error(ends, ~one_right) == 1.0
    assert expected_calibration_error(ends[:0], one_right[:0]) is None
