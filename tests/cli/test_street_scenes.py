"""Masks by commands: two rounds of real street scenes."""

from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from .conftest import Run
from .masks import iou_of, mean, values_in
from .test_process import call


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
