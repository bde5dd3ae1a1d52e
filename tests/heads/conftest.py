from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from sapwood.backbones.base import Tokens
from sapwood.heads import Features

DIM = 12


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def draw(rng) -> Callable[[Sequence[int], int], Features]:
    """Features of some of six well separated classes, so many a class."""
    centres = 2 * torch.randn(6, DIM, generator=rng)

    def features(classes: Sequence[int], count: int) -> Features:
        y = torch.tensor(list(classes)).repeat_interleave(count)
        return Features(centres[y] + torch.randn(len(y), DIM, generator=rng), y)

    return features


@pytest.fixture
def tokens() -> Callable[[torch.Tensor], Tokens]:
    return lambda x: Tokens(pooled=x, patches=x.unsqueeze(1), grid=(1, 1))
