"""What a state of masks refuses, and that nothing is touched; what a person is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sapwood.data.legend import Legend
from sapwood.data.masks import MaskedPictures
from sapwood.data.pictures import Picture
from sapwood.errors import ConfigError, DataError
from sapwood.learner import Learner
from sapwood.progress import Progress

from .helpers import FAST, TINY, Folders, all_bytes, create


def overwrite(folder: Path, value: int) -> Path:
    for path in (folder / "masks").iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), value)).save(path)
    return folder


def with_small(folder: Path) -> Path:
    for part, mode in (("images", "RGB"), ("masks", "L")):
        Image.new(mode, (40, 13)).save(folder / part / "small.png")
    return folder


def test_refusals_leave_the_state_as_it_was(tmp_path: Path, mask_folder: Folders, picture_folder: Folders) -> None:
    learner = create(tmp_path / "state")
    with pytest.raises(ConfigError, match="has learned nothing yet"):
        learner.predict([np.zeros((28, 28, 3), np.uint8)])
    learner.learn(mask_folder(["road", "car"], 4, name="first"), training=FAST)
    before = all_bytes(tmp_path / "state")
    known = mask_folder(["road"], 4, name="known")
    small = with_small(mask_folder(["tree"], 4, name="small"))
    refused: list[tuple[Callable[[], object], type[Exception], str]] = [
        (
            lambda: learner.learn(picture_folder(["ant"], 2)),
            DataError,
            "learns segmentation, but these data are for classification; name another state",
        ),
        (lambda: learner.evaluate(tmp_path / "pictures"), DataError, "learns segmentation"),
        (
            lambda: learner.learn(mask_folder({"ghost": 0, "road": 4}, 4, name="ghost")),
            DataError,
            "no mask holds a pixel of the new classes 'ghost'",
        ),
        (lambda: learner.learn(overwrite(known, 0)), DataError, "no mask holds a pixel of any class"),
        (lambda: learner.learn(overwrite(known, 255)), DataError, "no mask holds a pixel of any class"),
        (lambda: learner.learn(mask_folder(["Road"], 2, name="case")), DataError, "Road"),
        (lambda: learner.learn(small), DataError, r"small\.png \(is 40 x 13 pixels, smaller than a patch \(14 x 14\)"),
        (lambda: learner.evaluate(small), DataError, "smaller than a patch"),
        (lambda: learner.predict(small / "images"), DataError, r"small\.png: is 40 x 13 pixels, smaller than a patch"),
        (
            lambda: learner.evaluate(mask_folder(["bike"], 2, name="bikes")),
            DataError,
            "none of the classes in the masks to measure on is known: 'bike'; known: background, road, car",
        ),
        (lambda: learner.predict([]), DataError, "no pictures"),
    ]
    for call, error, message in refused:
        with pytest.raises(error, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert all_bytes(tmp_path / "state") == before
    learner.learn(small, skip_bad=True)
    assert learner.record["tasks"][-1]["images"] == 4
    assert len(learner.predict(small / "images", skip_bad=True)) == 4


def test_masks_are_not_for_a_state_that_names_pictures(
    tmp_path: Path, mask_folder: Folders, picture_folder: Folders
) -> None:
    learner = Learner.create(tmp_path / "state", backbone=TINY, method="ncm", image_size=28)
    learner.learn(picture_folder(["ant", "bee"], 2), training=FAST)
    with pytest.raises(DataError, match="learns classification, but these data are for segmentation"):
        learner.learn(mask_folder(["road"], 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": (30, 42)}, "must be a multiple of .* patch of 14 px, got 30x42; try 28x42"),
        ({"head": "linear"}, "head 'linear' is for classification, not for segmentation. Heads for it: dense"),
        ({"method": "ranpac"}, "method 'ranpac' is not for segmentation: its head ridge is not"),
        ({"settings": {"head": {"decoder": "conv5x5"}}}, "one of none, conv1x1, conv3x3"),
        ({"settings": {"adapter": {"rank": 0}}}, "adapter.rank must be >= 1"),
    ],
)
def test_creating_with_a_fault_makes_nothing(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        create(tmp_path / "state", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "state").exists()


class Notes(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def test_a_class_that_vanishes_when_pictures_shrink_is_learned_and_named(tmp_path: Path) -> None:
    values = np.zeros((280, 420), np.uint8)
    values[:100], values[201, 203] = 1, 2
    pictures = [Picture(f"{seed}", np.full((280, 420, 3), seed, np.uint8), mask=values) for seed in range(2)]
    notes = Notes()
    learner = create(tmp_path / "state")
    learner.learn(MaskedPictures(pictures, Legend({0: "background", 1: "road", 2: "dot"})), progress=notes)
    assert learner.classes_ == ("background", "road", "dot")
    assert any("dot (0%)" in line for line in notes.lines)


def test_masks_of_eight_bits_hold_254_classes(tmp_path: Path) -> None:
    learner = create(tmp_path / "state", settings={"training": {"epochs": 1, "validation": 0}})

    def one(first: int, last: int) -> MaskedPictures:
        count = last - first + 1
        values = np.zeros((28, 42), np.uint8)
        values.reshape(-1)[:count] = range(1, count + 1)
        legend = Legend({0: "background"} | {value: f"c{first + value - 1}" for value in range(1, count + 1)})
        return MaskedPictures([Picture("one", np.zeros((28, 42, 3), np.uint8), mask=values)], legend)

    learner.learn(one(1, 200))
    with pytest.raises(DataError, match="255 classes do not fit into masks of 8 bits, which hold 254 beside the back"):
        learner.learn(one(201, 255))
    assert len(learner.learn(one(201, 254)).classes_) == 255


def test_a_word_that_is_no_choice_is_refused(tmp_path: Path, mask_folder: Folders) -> None:
    with pytest.raises(ConfigError, match="unlabelled must be background or ignore, got 'Background'"):
        create(tmp_path / "state").learn(mask_folder(["road"], 2), unlabelled="Background")


def test_a_person_is_told_what_the_grid_cannot_show(tmp_path: Path, mask_folder: Folders) -> None:
    folder = mask_folder(["road", "pole"], 4)
    for path in (folder / "masks").iterdir():
        values = np.asarray(Image.open(path)).copy()
        values[values == 2] = 0
        values[3:5, 3:6] = 2  # six pixels of a patch's 196
        Image.fromarray(values).save(path)
    notes = Notes()
    create(tmp_path / "state").learn(folder, training=FAST, progress=notes)
    (line,) = (line for line in notes.lines if "too coarse" in line)
    assert "pole (0%)" in line
    assert "road" not in line
    assert line.startswith("at 28x42 px")
