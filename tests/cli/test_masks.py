"""Masks by commands: two rounds of real street scenes, and what options do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from .conftest import Run
from .test_process import call

VIEW = (28, 42)
TINY = ("--backbone", "random:dinov2-tiny", "--image-size", "28x42")
QUICK = ("--precision", "fp32", "--validation", "0")
Folders = Callable[..., Path]


def values_in(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def iou_of(counts: np.ndarray) -> list[float | None]:
    """By channel, from counts [K, K] of truth against prediction; None for a channel that occurs in neither."""
    either = [counts[c].sum() + counts[:, c].sum() - counts[c, c] for c in range(len(counts))]
    return [float(counts[c, c] / either[c]) if either[c] else None for c in range(len(counts))]


def mean(values: list[float | None]) -> float:
    present = [value for value in values if value is not None]
    return sum(present) / len(present)


# --- real street scenes


def street_scenes(camvid: Path, folder: Path, classes: tuple[str, ...], every: slice) -> Path:
    """A folder as a person makes one: pictures, and masks that label these classes only; void is 255."""
    names = json.loads((camvid / "classes.json").read_text())["classes"]
    table = np.zeros(256, np.uint8)
    table[len(names)] = 255
    for value, name in enumerate(classes, 1):
        table[names.index(name)] = value
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for picture in sorted((camvid / "train" / "images").iterdir())[every]:
        (folder / "images" / picture.name).symlink_to(picture)
        mask = values_in(camvid / "train" / "labels" / f"{picture.stem}.png")
        Image.fromarray(table[mask]).save(folder / "masks" / f"{picture.stem}.png")
    (folder / "classes.json").write_text(json.dumps({"background": 0, **{n: v for v, n in enumerate(classes, 1)}}))
    return folder


def test_street_scenes_from_the_first_command_to_the_report(shared_data: Path, tmp_path: Path, sapwood: Run) -> None:
    """The test pictures keep the values of their authors: what a mask means follows from the names."""

    def spoken(*arguments: object) -> dict[str, Any]:
        done = sapwood(*arguments, "--json")
        assert done.code == 0, done.err
        return done.json

    camvid, state = shared_data / "camvid", tmp_path / "street"
    first = street_scenes(camvid, tmp_path / "first", ("Road", "Sky", "Building"), slice(0, 360, 45))
    second = street_scenes(camvid, tmp_path / "second", ("Tree", "Car"), slice(20, 360, 45))
    test = tmp_path / "test"
    for part in ("images", "labels"):
        (test / part).mkdir(parents=True)
        for path in sorted((camvid / "test" / part).iterdir())[::78]:
            (test / part / path.name).symlink_to(path)
    shutil.copy(camvid / "classes.json", test)
    learn = ("--image-size", "56x70", "--backbone", "random:dinov2-tiny", "--epochs", "1", "--batch-size", "4")
    lr = ("--lr", "1e-2", "--precision", "fp32")

    begun = sapwood("learn", state, first, *learn, *lr, "--task", "town")
    assert begun.code == 0, begun.err
    done = call("learn", state, second, "--test", test, "--json")  # for the others a process would only import anew
    assert done.returncode == 0, done.stderr
    assert "estimate: " in done.stderr
    classes = ["background", "Road", "Sky", "Building", "Tree", "Car"]
    shown = spoken("show", state)
    assert json.loads(done.stdout) == shown
    assert (shown["kind"], shown["method"], shown["image_size"]) == ("segmentation", "clora+mib", [56, 70])
    assert shown["classes"] == classes
    assert [task["name"] for task in shown["tasks"]] == ["town", "task-2"]
    assert [task["new_classes"] for task in shown["tasks"]] == [classes[1:4], classes[4:]]
    for task in shown["tasks"]:
        assert task["images"] == 8
        assert task["peak_memory"] > 1e6
        assert 0 < task["seconds_per_picture"] < 10
        assert 4 * task["trainable_parameters"] <= task["bytes"] < 4 * task["trainable_parameters"] + 20_000
    assert shown["accuracy_on"] == ["validation", "test"]

    out, overlays = tmp_path / "drawn", tmp_path / "overlays"
    answer = spoken("predict", state, test / "images", "--out", out, "--overlay", overlays)
    pictures = sorted((test / "images").iterdir())
    assert len(pictures) == 3
    assert answer["version"] == shown["version"]
    assert [row["path"] for row in answer["predictions"]] == list(map(str, pictures))
    assert answer["values"] == {name: channel for channel, name in enumerate(classes)}
    truth = np.full(256, 255, np.uint8)  # the authors' values to channels
    truth[[0, 1, 3, 5, 8]] = 2, 3, 1, 4, 5
    counts = np.zeros((6, 6), np.int64)
    for row, picture in zip(answer["predictions"], pictures, strict=True):
        assert row.keys() == {"path", "mask", "classes"}
        assert Path(row["mask"]) == out / f"{picture.stem}.png"
        with Image.open(row["mask"]) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "P", (240, 180))
            assert image.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]  # type: ignore[index]
        drawn = values_in(Path(row["mask"]))
        assert set(np.unique(drawn).tolist()) <= set(range(6))
        assert row["classes"] == pytest.approx(
            {name: (drawn == channel).mean() for channel, name in enumerate(classes) if (drawn == channel).any()}
        )
        laid, plain = values_in(overlays / f"{picture.stem}.png"), values_in(picture)
        assert laid.shape == (180, 240, 3)
        assert np.array_equal(laid[drawn == 0], plain[drawn == 0])
        assert (laid[drawn != 0] != plain[drawn != 0]).any()
        wanted = truth[values_in(test / "labels" / f"{picture.stem}.png")]
        for true, found in product(range(6), range(6)):
            counts[true, found] += ((wanted == true) & (drawn == found)).sum()

    measured = spoken("evaluate", state, test)
    iou = iou_of(counts)
    assert max(share for share in iou if share is not None) > 0.2  # something was learned, so there is what to measure
    assert measured["confusion"] == counts.tolist()
    assert (measured["images"], measured["pixels"]) == (3, counts.sum())
    assert measured["miou"] == pytest.approx(mean(iou))
    assert measured["per_class"] == pytest.approx(dict(zip(classes[1:], iou[1:], strict=True)))
    assert measured["background"] == iou[0]
    assert (measured["old"], measured["new"]) == pytest.approx((mean(iou[1:4]), mean(iou[4:])))
    assert shown["accuracy"][1] == pytest.approx([measured["old"], measured["new"]])

    page = tmp_path / "report.html"
    assert sapwood("report", state, "--data", test, "-o", page).out == f"report: {page}\n"
    html = page.read_text("utf-8")
    assert html.count("data:image/jpeg") == 9  # picture, truth and prediction of each
    assert all(name in html for name in classes[1:])
    assert "IoU" in html


# --- what options do


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
