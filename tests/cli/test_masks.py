"""Masks by commands: what options do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from .conftest import Run
from .masks import iou_of, mean, values_in

VIEW = (28, 42)
TINY = ("--backbone", "random:dinov2-tiny", "--image-size", "28x42")
QUICK = ("--precision", "fp32", "--validation", "0")
Folders = Callable[..., Path]


class Street(NamedTuple):
    """A state that learned road and car, then tree; what it learned from; and test pictures, of bikes too."""

    state: Path
    first: Path
    second: Path
    test: Path


_STREET: list[Street] = []


@pytest.fixture
def street(sapwood: Run, tmp_path: Path, mask_folder: Folders) -> Street:
    """Its state is made once; each test gets a copy."""
    if not _STREET:
        made = Street(
            tmp_path / "model",
            mask_folder(["road", "car"], 12, also=["tree"], name="first"),
            mask_folder(["tree"], 12, also=["road", "car"], name="second"),
            mask_folder(["road", "car", "tree", "bike"], 6, name="test", size=[VIEW, (56, 84)], seed=5),
        )
        learn = ("learn", made.state, made.first, *TINY, *QUICK, "--epochs", "6", "--batch-size", "6", "--lr", "1e-2")
        assert sapwood(*learn).code == 0
        assert sapwood("learn", made.state, made.second).code == 0
        _STREET.append(made)
    copy = shutil.copytree(_STREET[0].state, tmp_path / "street")
    return _STREET[0]._replace(state=copy)


def test_what_is_not_labelled_may_be_ignored(sapwood: Run, tmp_path: Path, mask_folder: Folders) -> None:
    """Ignored, it never teaches what the background is; and a second round labels one class, which then is all."""
    first = mask_folder(["road", "car"], 12, name="first")
    drawn: dict[str, list[dict[str, float]]] = {}
    for said in ("background", "ignore"):
        state = tmp_path / said
        options = (*TINY, *QUICK, "--method", "clora", "--epochs", "8", "--batch-size", "6", "--lr", "1e-2")
        assert sapwood("learn", state, first, *options, "--unlabelled", said).code == 0
        answer = sapwood("predict", state, first / "images", "--json").json
        drawn[said] = [row["classes"] for row in answer["predictions"]]
    labelled, ignored = (np.mean([row.get("background", 0.0) for row in drawn[said]]) for said in drawn)
    truth = np.mean([(values_in(path) == 0).mean() for path in (first / "masks").iterdir()])
    assert labelled == pytest.approx(truth, abs=0.15)
    assert ignored < 0.02 < truth
    done = sapwood("learn", tmp_path / "new", first, *TINY, "--unlabelled", "void")
    assert (done.code, done.err) == (2, "error: --unlabelled must be background or ignore, got 'void'\n")


def test_whether_the_background_counts(sapwood: Run, street: Street) -> None:
    def measured(*options: str) -> dict[str, Any]:
        return sapwood("evaluate", street.state, street.test, "--json", *options).json

    plain, old, without = measured(), measured("--background", "old"), measured("--background", "exclude")
    per_class = list(plain["per_class"].values())
    assert plain["confusion"] == old["confusion"] == without["confusion"]
    assert plain["miou"] == old["miou"] == pytest.approx(mean([plain["background"], *per_class]))
    assert without["miou"] == pytest.approx(mean(per_class))
    assert abs(without["miou"] - plain["miou"]) > 0.01
    assert plain["old"] == without["old"] == pytest.approx(mean(per_class[:2]))
    assert old["old"] == pytest.approx(mean([plain["background"], *per_class[:2]]))
    assert plain == measured("--background", "include", "--future", "ignore")


def test_a_fall_by_pixels_that_now_count_is_said(sapwood: Run, tmp_path: Path, street: Street) -> None:
    state = tmp_path / "new"
    quick = ("--epochs", "1", "--batch-size", "6", "--test", street.test)
    assert sapwood("learn", state, street.first, *TINY, *QUICK, *quick).code == 0
    assert "count nowhere" not in sapwood("show", state).out
    assert sapwood("learn", state, street.second, "--test", street.test).code == 0
    masks = np.concatenate([values_in(path).reshape(-1) for path in (street.test / "masks").iterdir()])
    few, many = (masks < 3).sum(), (masks < 4).sum()
    said = f"count nowhere: {few:,} were measured after task-1, {many:,} after task-2."
    assert said in sapwood("show", state).out
    sapwood("report", state, "-o", tmp_path / "page.html")
    assert said in (tmp_path / "page.html").read_text("utf-8")


def test_names_of_yesterday_and_near_ones(sapwood: Run, street: Street) -> None:
    assert sapwood("classes", street.state, "rename", "tree", "bikes").code == 0
    done = sapwood("evaluate", street.state, street.test, "--record")
    assert done.code == 2
    assert "have other names today: 'tree' is 'bikes'; name them so there" in done.err
    assert sapwood("classes", street.state, "rename", "bikes", "bile").code == 0
    (street.test / "classes.json").write_text('{"background": 0, "road": 1, "car": 2, "bile": 3, "bike": 4}')
    done = sapwood("evaluate", street.state, street.test, "--future", "background")
    assert "so their pixels count as background: bike ('bike' is named nearly like 'bile')" in done.err
    (street.test / "classes.json").write_text('{"background": 0, "road": 1, "car": 2, "tree": 3, "bike": 4}')


def test_masks_that_were_learned_are_left_out(
    sapwood: Run, tmp_path: Path, street: Street, mask_folder: Folders
) -> None:
    done = sapwood("learn", street.state, street.second)
    assert done.code == 2
    assert "all 12 pictures were learned before (round 'task-2')" in done.err
    assert sapwood("learn", street.state, street.second, "--relearn", "--dry-run").code == 0
    grown = shutil.copytree(street.second, tmp_path / "grown")
    extra = mask_folder(["tree"], 1, also=["road", "car"], name="extra", seed=9)
    for part in ("images", "masks"):
        (file,) = (extra / part).iterdir()
        shutil.copy(file, grown / part / f"new{file.suffix}")
    done = sapwood("learn", street.state, grown, "--epochs", "1", "--json")
    assert "learned before, and left out: 12 of the pictures" in done.err
    assert done.json["tasks"][-1]["images"] == 1
    # Read for another class as well, the same masks have something to say.
    more = json.loads((street.second / "classes.json").read_text()) | {"bus": 9}
    (grown / "classes.json").write_text(json.dumps(more))
    assert sapwood("learn", street.state, grown).code == 2  # a name that no mask shows changes nothing
    (grown / "classes.json").write_text('{"background": 0, "road": 1, "car": 2, "tree": 3}')
    assert "left out" not in sapwood("learn", street.state, grown, "--dry-run").out
    assert sapwood("classes", street.state, "rename", "tree", "wood").code == 0
    assert sapwood("learn", street.state, street.second).code == 2


def test_masks_and_overlays_do_not_share_a_folder(sapwood: Run, tmp_path: Path, street: Street) -> None:
    done = sapwood(
        "predict", street.state, street.test / "images", "--out", tmp_path / "o", "--overlay", tmp_path / "o"
    )
    assert done.code == 2
    assert f"--out and --overlay both name {tmp_path / 'o'}; give each a folder of its own" in done.err
    assert not (tmp_path / "o").exists()


def test_what_pixels_of_the_future_count_as(sapwood: Run, street: Street) -> None:
    ignored = sapwood("evaluate", street.state, street.test, "--json", "--background", "exclude")
    counted = sapwood(
        "evaluate", street.state, street.test, "--json", "--background", "exclude", "--future", "background"
    )
    assert "not known by these names, so their pixels are not measured: bike" in ignored.err
    masks = [values_in(path) for path in (street.test / "masks").iterdir()]
    bikes, everything = sum((mask == 4).sum() for mask in masks), sum(mask.size for mask in masks)
    assert bikes > 1000
    assert ignored.json["pixels"] == everything - bikes
    assert counted.json["pixels"] == everything
    more = np.array(counted.json["confusion"]) - np.array(ignored.json["confusion"])
    assert more[0].sum() == bikes
    assert not more[1:].any()
    assert counted.json["miou"] == pytest.approx(mean(iou_of(np.array(counted.json["confusion"]))[1:]))
    assert counted.json["miou"] < ignored.json["miou"]  # classes drawn where bikes are now count against them


def test_tiles_change_large_pictures_only(sapwood: Run, tmp_path: Path, street: Street) -> None:
    """The masks of ``predict --tile`` are those that ``evaluate --tile`` counts."""
    names = sorted(path.name for path in (street.test / "images").iterdir())
    for folder, option in (("plain", ()), ("tiled", ("--tile",))):
        done = sapwood("predict", street.state, street.test / "images", "--out", tmp_path / folder, *option)
        assert done.code == 0, done.err
    plain, tiled = ([values_in(tmp_path / folder / name) for name in names] for folder in ("plain", "tiled"))
    assert {mask.shape for mask in tiled} == {VIEW, (56, 84)}
    for one, other in zip(plain, tiled, strict=True):
        assert one.shape == other.shape
        assert np.array_equal(one, other) == (one.shape == VIEW)
    table = np.array([0, 1, 2, 3, 255], np.uint8)
    for drawn, option in ((plain, ()), (tiled, ("--tile",))):
        counts = np.zeros((4, 4), np.int64)
        for name, mask in zip(names, drawn, strict=True):
            wanted = table[values_in(street.test / "masks" / name)]
            for true, found in product(range(4), range(4)):
                counts[true, found] += ((wanted == true) & (mask == found)).sum()
        assert sapwood("evaluate", street.state, street.test, "--json", *option).json["confusion"] == counts.tolist()


def test_crop_measures_the_square_in_the_middle(sapwood: Run, street: Street) -> None:
    cropped = sapwood("evaluate", street.state, street.test, "--json", "--crop").json
    masks = [values_in(path) for path in (street.test / "masks").iterdir()]
    squares = [mask[:, (width - height) // 2 :][:, :height] for mask in masks for height, width in [mask.shape]]
    assert cropped["pixels"] == sum((square != 4).sum() for square in squares)
    assert [sum(row) for row in cropped["confusion"]] == [
        sum((square == channel).sum() for square in squares) for channel in range(4)
    ]


def test_the_text_for_people(sapwood: Run, tmp_path: Path, street: Street) -> None:
    measured = sapwood("evaluate", street.state, street.test, "--json").json
    told = sapwood("evaluate", street.state, street.test).out
    without = [value for value in measured["per_class"].values() if value is not None]
    means = [100 * sum(each) / len(each) for each in ([measured["background"], *without], without)]
    assert told.startswith(
        f"mIoU {means[0]:.1f} % with the background, {means[1]:.1f} % without; over 6 pictures, "
        f"{measured['pixels']:,} pixels"
    )
    assert means[0] == pytest.approx(100 * measured["miou"])
    rows = {line.split()[0]: line.split()[1:] for line in told.splitlines() if line}
    assert rows["tree"] == [f"{100 * measured['per_class']['tree']:.1f}", f"{sum(measured['confusion'][3]):,}"]
    predicted = sapwood("predict", street.state, street.test / "images" / "000.png", "--out", tmp_path / "out")
    assert predicted.out.startswith(f"{street.test / 'images' / '000.png'}  {tmp_path / 'out' / '000.png'}  ")
    assert "mean IoU, %" in sapwood("show", street.state).out
    sapwood("evaluate", street.state, street.test, "--record")
    assert sapwood("show", street.state, "--json").json["accuracy"][1] == [measured["old"], measured["new"]]


def test_pictures_of_one_name_do_not_overwrite_each_other(sapwood: Run, tmp_path: Path, street: Street) -> None:
    two = [street.test / "images" / "000.png", street.first / "images" / "000.png"]
    out = tmp_path / "deep" / "out"
    rows = sapwood("predict", street.state, *two, "--out", out, "--json").json["predictions"]
    assert [row["mask"] for row in rows] == [str(out / "000.png"), str(out / "000-2.png")]
    assert sapwood("predict", street.state, two[1], "--json").json["predictions"][0]["classes"] == rows[1]["classes"]
    assert rows[0]["classes"] != rows[1]["classes"]


@pytest.mark.parametrize(
    ("command", "options", "told"),
    [
        ("predict", ("--top", "2"), "--top: a mask has one class for each pixel"),
        ("evaluate", ("--background", "with"), "background must be include, old or exclude, got 'with'"),
        ("evaluate", ("--future", "x"), "future must be ignore or background, got 'x'"),
    ],
)
def test_options_that_do_not_fit(
    command: str, options: tuple[str, str], told: str, sapwood: Run, street: Street
) -> None:
    done = sapwood(command, street.state, street.test, *options)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert told in done.err
