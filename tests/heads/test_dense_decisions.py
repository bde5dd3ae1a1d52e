"""What the dense head decides, by hand, and the settings that it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sapwood.errors import ConfigError
from sapwood.heads.dense import DenseConfig, DenseHead

DIM, GRID = 4, (3, 5)


def at(*values: float) -> Tensor:
    """Logits of one pixel."""
    return torch.tensor(values).reshape(1, -1, 1, 1)


def test_decisions_by_hand() -> None:
    plain, unknown, auxiliary = (
        DenseHead(DenseConfig(background=each), DIM) for each in ("class", "unknown", "auxiliary")
    )  # type: ignore[arg-type]
    assert (plain.decides, unknown.decides, auxiliary.decides) == (False, True, True)
    logits = at(1.0, 2.0, 3.0)
    assert plain.decision(logits) is logits
    # sigmoid: 0 -> 1/2, log 3 -> 3/4, -log 3 -> 1/4
    three = torch.tensor(3.0).log().item()
    torch.testing.assert_close(unknown.decision(at(0.0, three, -three, -three)), at(0.75, 0.75, 0.25))
    assert unknown.decision(at(0.0, three, -three, -1.0)).argmax().item() == 0
    assert unknown.decision(at(0.0, three, -three, -1.2)).argmax().item() == 1
    for values, best in (((9.0, -0.1, -0.2), 0), ((9.0, -0.1, 0.1), 2), ((-9.0, 0.0, -1.0), 0), ((9.0, 0.2, 0.1), 1)):
        assert auxiliary.decision(at(*values)).argmax().item() == best


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"background": "void"}, "background must be one of class, unknown, auxiliary; got 'void'"),
        ({"stem": "own"}, "stem must be one of shared, per_task; got 'own'"),
        ({"branches": "two"}, "branches must be one of single, parallel; got 'two'"),
        ({"branch_start": "copy"}, "branch_start must be one of official, preserve; got 'copy'"),
        ({"decoder": "none", "branches": "parallel"}, "branches=parallel needs a decoder: conv1x1, conv3x3 or aspp"),
    ],
)
def test_bad_settings_name_the_alternatives(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        DenseConfig(**options)
