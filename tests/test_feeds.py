"""What a round is trained on: every class as often, unless all pictures shall count the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from sapwood.feeds import FeatureFeed
from sapwood.kinds import KINDS
from sapwood.kinds.base import Round
from sapwood.progress import Progress
from sapwood.settings import TrainingConfig


@pytest.fixture
def uneven(picture_folder) -> Round:
    folder: Path = picture_folder({"ant": 24, "bee": 3})
    kind = KINDS["classification"]
    store = kind.load(kind.read(folder), 14, Progress(), skip_bad=False)
    return kind.prepare(store, (), 0, "insects", 0, 0.0, 14)


def shown(feed, epoch: int = 0) -> Counter[int]:
    return Counter(label for batch in feed.batches(epoch, 0) for label in batch.targets.tolist())


def test_training_views_are_balanced_and_plain_ones_are_not(uneven: Round) -> None:
    auto, none = (uneven.feed(TrainingConfig(batch_size=4, balance=each), stays=False) for each in ("auto", "none"))
    assert [shown(auto, epoch) for epoch in (0, 1)] == [{0: 14, 1: 13}, {0: 13, 1: 14}]
    assert shown(none) == shown(uneven.plain_feed(TrainingConfig(), held=False)) == {0: 24, 1: 3}
    assert len(auto) == len(none) == 7
    whole = torch.cat([batch.indices for batch in auto.batches(2, 0)])
    assert torch.equal(torch.cat([batch.indices for batch in auto.batches(2, 5)]), whole[20:])


def test_features_are_shown_as_pictures_are() -> None:
    y = torch.tensor([2] * 10 + [6] * 2)
    x = torch.arange(12.0).unsqueeze(1)
    auto, none = (FeatureFeed(x, y, 5, 0, 0, balanced=each) for each in (True, False))
    batches = list(auto.batches(0, 0))
    assert sum(Counter(batch.targets.tolist()).get(6, 0) for batch in batches) == 6
    for batch in batches:
        assert torch.equal(batch.targets, y[batch.features.long().flatten()])
    assert (
        sorted(torch.cat([batch.features for batch in none.batches(0, 0)]).flatten().tolist()) == x.flatten().tolist()
    )
