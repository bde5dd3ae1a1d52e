"""Conditions as tasks: the same classes by day and at dusk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sapwood.data.benchmarks import BENCHMARKS
from sapwood.data.mask_domains import LARGE_THINGS
from sapwood.errors import ConfigError


def names(pictures: object) -> set[str]:
    return {Path(picture.name).name.split("_")[0] for picture in pictures}  # type: ignore[attr-defined]


def test_camvid_by_day_and_at_dusk(shared_data: Path) -> None:
    stream = BENCHMARKS["camvid-domains"](shared_data)
    assert stream.domains
    assert [(one.name, len(one.train), len(one.test)) for one in stream.rounds] == [("day", 305, 171), ("dusk", 62, 62)]
    day, dusk = stream.rounds
    # Test frames by day are of a drive that no training frame is of; at dusk there is but one drive.
    assert names(day.train) == {"0006R0", "0016E5"}
    assert names(day.test) == {"Seq05VD"}
    assert names(dusk.train) == names(dusk.test) == {"0001TP"}
    assert not set(dusk.train) & set(dusk.test)
    assert day.train.classes == dusk.train.classes == day.test.classes
    assert set(day.train.classes) == set(LARGE_THINGS)


def test_dusk_is_darker(shared_data: Path) -> None:
    day, dusk = BENCHMARKS["camvid-domains"](shared_data, every=20).rounds
    light = [np.mean([np.asarray(Image.open(one.source)).mean() for one in part.train]) for part in (day, dusk)]
    assert light[1] < 0.8 * light[0]


def test_the_order_may_be_turned_round_and_cut(shared_data: Path) -> None:
    orders = {
        tuple(one.name for one in BENCHMARKS["camvid-domains"](shared_data, order_seed=seed).rounds)
        for seed in range(8)
    }
    assert orders == {("day", "dusk"), ("dusk", "day")}
    assert [one.name for one in BENCHMARKS["camvid-domains"](shared_data, keep=1).rounds] == ["day"]
    with pytest.raises(ConfigError, match="camvid-domains has 2 tasks, got keep=3"):
        BENCHMARKS["camvid-domains"](shared_data, keep=3)
    with pytest.raises(ConfigError, match="its tasks are conditions, which cannot be split into 2; leave --tasks out"):
        BENCHMARKS["camvid-domains"](shared_data, tasks=2)
