"""Where there is nothing to keep of the blocks below the adapter: refused in one line, before anything is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sapwood.errors import ConfigError
from sapwood.learner import Learner
from sapwood.network import Network
from sapwood.prefixes import first_adapted
from sapwood.settings import TrainingConfig

from .helpers import network


def test_where_it_can_have_no_effect() -> None:
    def refused(model: Network, match: str, needs: frozenset[str] = frozenset(), kind: str = "classification") -> None:
        with pytest.raises(ConfigError, match=match):
            first_adapted(model, needs, kind)

    assert first_adapted(network(), {"teacher"}, "classification") == 1
    refused(network("all"), "begins in the first; .*adapter.blocks=-1:")
    refused(network(adapter="none"), "nothing is adapted")
    refused(network(adapter="full"), "all blocks are trained")
    refused(network(adapter="experts"), "looks at whole pictures")
    refused(network(backbone="random:resnet-tiny"), "no plain chain of blocks")
    refused(network(), "compares the maps", frozenset({"teacher", "maps"}))
    refused(network(), "not of masks", kind="segmentation")
    with pytest.raises(ConfigError, match="cache_prefix must be >= 0"):
        TrainingConfig(cache_prefix=-1)


def test_refused_before_anything_is_written(tmp_path: Path) -> None:
    settings = {"training": {"epochs": 1, "precision": "fp32", "cache_prefix": 1}}
    learner = Learner.create(tmp_path / "s", backbone="random:dinov2-tiny", method="seq-lora", settings=settings)
    given = [(np.full((28, 28, 3), 40 * index, np.uint8), "ab"[index % 2]) for index in range(4)]
    with pytest.raises(ConfigError, match="begins in the first"):
        learner.learn(given)
    assert learner.state.training.plan() is None
    learner.learn(given, training={"cache_prefix": 0})
    assert learner.classes_ == ("a", "b")
