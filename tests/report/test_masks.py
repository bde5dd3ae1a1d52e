"""The report of a state that draws masks."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sapwood.data.palette import palette
from sapwood.errors import DataError
from sapwood.learner import Learner
from sapwood.progress import Progress
from sapwood.report import MaskSample, ReportData, gather, render
from sapwood.report.gallery import masks

from .helpers import Page, check_self_contained

NAMES = {"background": 0, "road": 1, "<car>": 2, "tree": 3, "sign": 4}
COLOURS = np.array([[90, 90, 90], [40, 40, 200], [200, 40, 40], [40, 180, 40], [230, 230, 60]], np.uint8)
HEIGHT, WIDTH = 42, 56


def street(folder: Path, count: int, names: Mapping[str, int], *, ignored: int = 0, seed: int = 0) -> Path:
    """Pictures of coloured columns with their masks; the first ``ignored`` columns of pixels do not count."""
    random = np.random.default_rng(seed)
    values = sorted(names.values())
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for index in range(count):
        mask = np.repeat(random.permutation(np.resize(values, 8)), WIDTH // 8).astype(np.uint8)
        mask = np.tile(mask, (HEIGHT, 1))
        picture = np.clip(COLOURS[mask] + random.normal(0, 8, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8)
        mask[:, :ignored] = 255
        Image.fromarray(picture).save(folder / "images" / f"{index}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{index}.png")
    (folder / "classes.json").write_text(json.dumps(dict(names)))
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A state of three rounds, the last without new classes, and masks that also hold a class not known."""
    root = tmp_path_factory.mktemp("street")
    test = street(root / "test", 5, NAMES, ignored=7, seed=9)
    learner = Learner.create(
        root / "model",
        kind="segmentation",
        backbone="random:dinov2-tiny",
        method="clora",
        image_size=28,
        settings={"training": {"epochs": 1, "batch_size": 4}},
    )
    for index, classes in enumerate((("road", "<car>"), ("tree",), ("road",))):
        names = {name: NAMES[name] for name in ("background", *classes)}
        learner.learn(street(root / f"round{index}", 5, names, seed=index), test=test)
    return learner.state.path, test


@pytest.fixture(scope="module")
def report(world: tuple[Path, Path]) -> ReportData:
    return gather(Learner.open(world[0]), world[1])


def test_the_report_says_what_was_measured(world: tuple[Path, Path], report: ReportData) -> None:
    learner = Learner.open(world[0])
    evaluated = learner.evaluate(world[1])
    assert report.classes == ("road", "<car>", "tree")
    assert [task.classes for task in report.tasks] == [("road", "<car>"), ("tree",), ()]
    assert report.tasks[2].again == ("road",)
    assert report.per_class == pytest.approx(evaluated.per_class)
    last = [evaluated.per_class[name] for name in report.classes]
    assert report.numbers["last mean IoU"] == pytest.approx(sum(last) / 3)
    assert report.numbers["with the background"] == pytest.approx((sum(last) + evaluated.background) / 4)
    first, (after, _), (row, tree, _) = learner.accuracy_
    # The third round brought no class: it goes on with the second, whose row is then the last one.
    assert report.numbers["average over the rounds"] == pytest.approx((first[0] + (2 * row + tree) / 3) / 2)
    assert report.numbers["forgetting"] == pytest.approx(first[0] - row)
    assert report.numbers["backward transfer"] == pytest.approx(row - first[0])
    assert report.after_each == pytest.approx((first[0], (2 * after + learner.accuracy_[1][1]) / 3, sum(last) / 3))


def test_costs_of_every_round(world: tuple[Path, Path], report: ReportData) -> None:
    record = Learner.open(world[0]).record
    assert [task.peak_memory for task in report.tasks] == [task["peak_memory"] for task in record["tasks"]]
    assert all(task.seconds_per_picture > 0 for task in report.tasks if task.seconds_per_picture is not None)
    on_disk = sum(path.stat().st_size for path in world[0].glob("tasks/*/*"))
    assert sum(task.bytes for task in report.tasks) == on_disk
    assert {"peak memory, last round", "predicting a picture, after the last round"} <= report.costs.keys()


def test_pictures_come_with_truth_and_prediction(world: tuple[Path, Path], report: ReportData) -> None:
    learner, (_, test) = Learner.open(world[0]), world
    drawn = learner.predict(test / "images")
    channels = np.array([0, 1, 2, 3, 255, *[255] * 251], np.uint8)  # "sign" is value 4, and not known
    for index, sample in enumerate(report.masks):
        truth = channels[np.asarray(Image.open(test / "masks" / f"{index}.png"))]
        assert sample.name.endswith(f"test/images/{index}.png")
        assert np.array_equal(sample.truth, truth)
        assert np.array_equal(sample.predicted, drawn[index].mask)
        assert sample.right == pytest.approx((drawn[index].mask == truth)[truth != 255].mean())
    assert len(report.masks) == 5
    assert [sample.name[-5] for sample in gather(learner, test, samples=2).masks] == ["1", "3"]


def test_the_page_speaks_of_iou(report: ReportData) -> None:
    html = render(report)
    check_self_contained(html)
    page = Page(html)
    assert {"Mean IoU matrix", "Mean IoU after each round", "Mean IoU in percent", "IoU of each class"} <= set(
        page.texts
    )
    assert "accuracy" not in " ".join(page.texts).lower()
    assert "mean mean" not in html
    assert "3 classes in 3 rounds" in page.texts
    assert "more of road" in page.texts
    assert page.texts.count("<car>") >= 2  # the table of classes, and the legend of the masks
    assert "<car>" not in html
    assert len(page.find("td", **{"class": "missing"})) == 1  # a round without classes has no column
    assert "28x28" in page.texts


def test_the_gallery_is_small_and_says_what_it_shows(report: ReportData) -> None:
    large = np.random.default_rng(0).integers(0, 256, (192, 256), np.uint8).repeat(3).reshape(192, 256, 3)
    smooth = np.asarray(Image.fromarray(large[::8, ::8]).resize((256, 192), Image.Resampling.BICUBIC))
    mask = np.tile(np.arange(256, dtype=np.uint8) // 86, (192, 1))
    html = render(replace(report, masks=(MaskSample(smooth, mask, mask, 1.0, "a & b.png"),) * 12))
    assert len(html.encode()) < 2e6
    images = Page(html).find("img")
    assert len(images) == 36
    assert [image["alt"] for image in images[:3]] == [
        "a & b.png",
        "truth: road 34%, <car> 33%",
        "prediction: road 34%, <car> 33%",
    ]
    assert {"picture", "truth", "prediction", "a & b.png"} <= set(Page(html).texts)


def test_masks_have_their_colours_and_what_does_not_count_is_hatched() -> None:
    image = np.full((16, 48, 3), 100, np.uint8)
    truth = np.repeat(np.array([[0, 2, 255]], np.uint8), 16, axis=1).repeat(16, axis=0)
    sources = re.findall(r'src="data:image/jpeg;base64,([^"]*)"', masks([MaskSample(image, truth, truth)], ("a", "b")))
    picture, painted, _ = (np.asarray(Image.open(io.BytesIO(base64.b64decode(source)))) for source in sources)
    assert np.abs(picture.astype(int) - 100).max() <= 2
    assert np.abs(painted[:, :14].astype(int) - 100).max() <= 12  # the background keeps the picture
    assert painted[4:12, 20:28].mean((0, 1)) == pytest.approx(0.4 * (64 + 50) + 0.6 * np.array(palette()[2]), abs=6)
    hatched = painted[:, 34:].astype(int)
    assert hatched.min() < 170
    assert hatched.max() > 230
    assert np.ptp(hatched, axis=2).max() <= 12  # grey


def test_without_data_there_is_no_gallery(world: tuple[Path, Path]) -> None:
    bare = gather(Learner.open(world[0]))
    assert bare.masks == ()
    assert not Page(render(bare)).find("img")


def test_data_of_the_other_kind_are_refused(
    world: tuple[Path, Path], picture_folder: Callable[..., Path], tmp_path: Path
) -> None:
    named = picture_folder(["owl", "cat"], 2)
    with pytest.raises(DataError, match="model learns segmentation, but these data are for classification"):
        gather(Learner.open(world[0]), named)
    other = Learner.create(tmp_path / "names", backbone="random:dinov2-tiny", method="ncm", image_size=28).learn(named)
    with pytest.raises(DataError, match="names learns classification, but these data are for segmentation"):
        gather(other, world[1])


def test_bad_pictures_can_be_skipped(world: tuple[Path, Path], tmp_path: Path) -> None:
    data = street(tmp_path / "data", 3, NAMES)
    Image.new("L", (5, 5)).save(data / "masks" / "1.png")
    (data / "images" / "2.png").write_bytes(b"no picture")
    learner, notes = Learner.open(world[0]), []

    class Listening(Progress):
        def note(self, text: str) -> None:
            notes.append(text)

    with pytest.raises(DataError, match=r"1\.png: is 5 x 5 pixels, but its picture is 56 x 42"):
        gather(learner, data)
    report = gather(learner, data, skip_bad=True, progress=Listening())
    assert [sample.name[-5:] for sample in report.masks] == ["0.png"]
    assert [re.sub(".*/", "", note)[:5] for note in notes] == ["1.png", "2.png"]


def test_a_round_measured_on_its_own_pictures_has_no_table_of_classes(world: tuple[Path, Path]) -> None:
    learner = Learner.open(world[0])
    tasks: list[dict[str, Any]] = [dict(task) for task in learner.record["tasks"]]
    del tasks[-1]["measured"]
    learner.record.update(tasks=tasks, accuracy_on=["test", "test", "validation"])  # type: ignore[attr-defined]
    report = gather(learner)
    assert report.per_class == {}
    assert report.numbers["last mean IoU"] is None
    page = Page(render(report))
    assert "IoU of each class" not in page.texts
    assert "own validation pictures" in " ".join(page.texts)
