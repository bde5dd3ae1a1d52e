"""Pictures of nothing that was taught, and how far scores can be believed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .conftest import TINY, Run, World


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """Pictures of no class: black and white noise."""
    random = np.random.default_rng(5)
    folder = tmp_path / "strange"
    folder.mkdir()
    for index in range(4):
        noise = 255 * random.integers(0, 2, (32, 32, 1), dtype=np.uint8).repeat(3, 2)
        Image.fromarray(noise).save(folder / f"{index}.png")
    return folder


def test_predict_says_what_it_does_not_know(sapwood: Run, read_only_world: World, strange: Path) -> None:
    answer = sapwood("predict", read_only_world.state, strange, read_only_world.test, "--json").json
    assert answer["calibrated"] is True
    known = [one["known"] for one in answer["predictions"]]
    assert known[:4] == [False] * 4
    assert sum(known[4:]) >= 8  # of nine
    lines = sapwood("predict", read_only_world.state, strange, read_only_world.test).out.splitlines()
    assert [line.endswith("  unknown") for line in lines] == [not value for value in known]


def test_evaluate_measures_both_kinds_of_pictures(sapwood: Run, read_only_world: World, strange: Path) -> None:
    line = ("evaluate", read_only_world.state, read_only_world.test)
    alone, both = sapwood(*line, "--json").json, sapwood(*line, "--unknown", strange, "--json").json
    assert (alone["unknown_images"], alone["false_accept"]) == (0, None)
    assert (both["unknown_images"], both["false_accept"]) == (4, 0.0)
    assert alone == both | {"unknown_images": 0, "false_accept": None}
    assert alone["accepted"] >= 8 / 9
    assert alone["calibrated"] is True
    assert 0 <= alone["ece"] < 0.6
    text = sapwood(*line, "--unknown", strange).out
    assert "of 4 pictures of other classes taken for known: 0.0 %" in text


def test_worst_and_confused_first(sapwood: Run, read_only_world: World, tmp_path: Path) -> None:
    """Bees in the folder of cows, three; an ant in that of bees."""
    data = tmp_path / "mixed"
    shutil.copytree(read_only_world.test, data)
    for index in range(3):
        shutil.copy(read_only_world.test / "bee" / f"0{index}.png", data / "cow" / f"bee{index}.png")
    shutil.copy(read_only_world.test / "ant" / "00.png", data / "bee" / "ant.png")
    found = sapwood("evaluate", read_only_world.state, data, "--json").json
    assert found["top_confusions"] == [
        {"true": "cow", "predicted": "bee", "count": 3, "share": 0.5},
        {"true": "bee", "predicted": "ant", "count": 1, "share": 0.25},
    ]
    assert found["balanced_accuracy"] == pytest.approx((1 + 3 / 4 + 3 / 6) / 3)
    assert found["accuracy"] == pytest.approx(9 / 13)
    assert {Path(one["path"]).name for one in found["worst"]} == {"bee0.png", "bee1.png", "bee2.png", "ant.png"}
    scores = [one["score"] for one in found["worst"]]
    assert scores == sorted(scores, reverse=True)
    assert {(one["true"], one["predicted"]) for one in found["worst"]} == {("cow", "bee"), ("bee", "ant")}


@pytest.mark.parametrize("method", ["seq-lora", "ranpac", "slca", "color", "dual-lora"])
def test_every_head_and_adapter(
    sapwood: Run, read_only_world: World, strange: Path, tmp_path: Path, method: str
) -> None:
    state = tmp_path / "model"
    options = ("--validation", "0.4", "--epochs", "1", "--json")
    for data in (read_only_world.first, read_only_world.second):
        learned = sapwood(
            "learn", state, data, *(TINY if data == read_only_world.first else ()), "--method", method, *options
        )
        assert learned.code == 0, learned.err
        answer = sapwood("predict", state, strange, read_only_world.test, "--json").json
        # The second round holds out pictures of one class alone, which say nothing of the others; a head of sums
        # tries those that it learns from too.
        assert answer["calibrated"] is (data == read_only_world.first or method == "ranpac")
    known = {one["known"] for one in answer["predictions"]}
    # Where training moved the features only the 16 held-out pictures could tell, too few; else all 40 do.
    assert known == ({True, False} if method == "ranpac" else {None})


def test_nothing_held_out(sapwood: Run, read_only_world: World, tmp_path: Path) -> None:
    state = tmp_path / "model"
    line = ("learn", state, read_only_world.first, *TINY, "--method", "seq-lora", "--epochs", "1", "--validation", "0")
    assert sapwood(*line).code == 0
    answer = sapwood("predict", state, read_only_world.test / "ant", "--json").json
    assert answer["calibrated"] is False
    assert [one["known"] for one in answer["predictions"]] == [None] * 3


def test_masks_have_no_unknown(sapwood: Run, mask_folder, strange: Path, tmp_path: Path) -> None:
    state, data = tmp_path / "model", mask_folder(["road"], 4)
    assert sapwood("learn", state, data, *TINY[:2], "--epochs", "1").code == 0
    refused = sapwood("evaluate", state, data, "--unknown", strange)
    assert (refused.code, refused.err.strip().splitlines()[-1]) == (
        2,
        "error: --unknown: only for states that name pictures; this one draws masks",
    )
    assert "calibrated" not in sapwood("predict", state, data / "images", "--json").json
