"""What differs for pictures with one class each is what part 1 had: a quick look through the same interface."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sapwood.backbones import create_backbone
from sapwood.errors import ConfigError
from sapwood.kinds import KINDS
from sapwood.progress import Progress

KIND = KINDS["classification"]


def test_a_round(picture_folder: Callable[..., Path]) -> None:
    given = KIND.read(picture_folder({"bee": 12, "ant": 3}))
    store = KIND.load(given, 28, Progress(), skip_bad=False, least=1000)  # that is for masks
    round_ = KIND.prepare(store, ("cat", "bee"), 1, "second", 0, 0.1, 28)
    assert round_.names == ("cat", "bee", "ant")
    assert (round_.task.new, round_.task.annotated, round_.task.known) == ((2,), (1, 2), 3)
    rows = round_.manifest()
    assert (
        sorted((row["label"], row["split"]) for row in rows)
        == [(1, "train")] * 11 + [(1, "validation")] + [(2, "train")] * 3
    )
    assert len(round_) == 15


def test_sums() -> None:
    confusion = torch.tensor([[3, 1], [0, 4]])
    tasks = [{"annotated": ["a"]}, {"annotated": ["b"]}]
    found = KIND.summary(confusion, ("a", "b"), tasks)
    assert found == {"accuracy": 7 / 8, "per_class": {"a": 0.75, "b": 1.0}, "counts": {"a": 4, "b": 4}}
    assert KIND.summary(0 * confusion, ("a", "b"), tasks)["accuracy"] is None
    assert KIND.cells(confusion, ("a", "b"), tasks) == [0.75, 1.0]


def test_views_are_square() -> None:
    info = create_backbone("random:dinov2-tiny", 28).info
    assert KIND.view_size(None, info) == 28
    assert KIND.view_size((42, 42), info) == 42
    with pytest.raises(ConfigError, match="square views; got 28x42, give one number"):
        KIND.view_size((28, 42), info)
