"""Folders of pictures and masks; every bad one gets its line."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sapwood.data.legend import BACKGROUND, Legend
from sapwood.data.masks import MaskedPictures, decode_mask, is_mask_data, read_mask_split, read_masks
from sapwood.data.pictures import Pictures
from sapwood.errors import DataError

STREET = Legend({0: BACKGROUND, 1: "road", 2: "car"})


def add(
    folder: Path, stem: str, *, image: str | None = ".jpg", mask: str | None = ".png", where: str = "masks"
) -> None:
    for kind, suffix in (("images", image), (where, mask)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        if suffix is not None:
            file = folder / kind / f"{stem}{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB" if kind == "images" else "L", (6, 4)).save(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "street"
    for stem in ("b10", "b9", "deep/a"):
        add(place, stem)
    (place / "classes.json").write_text('{"background": 0, "road": 1, "car": 2}')
    return place


def refusal(data: Path, read: Callable[[Any], object] = read_masks) -> str:
    with pytest.raises(DataError) as caught:
        read(data)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_pairs_come_in_natural_order(folder: Path) -> None:
    (folder / "images" / ".DS_Store").write_bytes(b"x")
    (folder / "masks" / "notes.txt").write_text("x")
    (folder / "overlays").mkdir()
    found = read_masks(str(folder))
    assert [Path(one.name).relative_to(folder).as_posix() for one in found] == [
        "images/b9.jpg",
        "images/b10.jpg",
        "images/deep/a.jpg",
    ]
    assert [one.mask for one in found] == [folder / "masks" / f"{stem}.png" for stem in ("b9", "b10", "deep/a")]
    assert found.labels == (None,) * 3
    assert found.legend == STREET
    assert found.classes == ("road", "car")
    assert is_mask_data(folder)


def test_nothing_is_decoded(folder: Path) -> None:
    for file in (folder / "masks").glob("*.png"):
        file.write_bytes(b"not a picture")
    assert len(read_masks(folder)) == 3


def test_labels_is_another_name_for_masks(tmp_path: Path) -> None:
    add(tmp_path, "a", image=".PNG", mask=".PNG", where="Labels")
    (tmp_path / "classes.txt").write_text("background\nroad")
    assert read_masks(tmp_path)[0].mask == tmp_path / "Labels" / "a.PNG"


def test_parts(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    folder.rename(root / "Training")
    add(root / "test", "x")
    assert is_mask_data(root)
    assert len(read_masks(root)) == 3
    assert "has no classes.json" in refusal(root, lambda data: read_mask_split(data, "test"))
    (root / "classes.json").write_text('["road"]')
    assert read_mask_split(root, "test").classes == ("road",)
    assert read_mask_split(root, "training", unlabelled="ignore").legend.names[0] is None
    assert "has no val split, only: test, Training" in refusal(root, lambda data: read_mask_split(data, "val"))
    assert "no split is called 'dev'" in refusal(root, lambda data: read_mask_split(data, "dev"))
    assert "has no parts" in refusal(root / "test", lambda data: read_mask_split(data, "test"))


def test_camvid(shared_data: Path) -> None:
    folder = shared_data / "camvid"
    sizes = {part: len(read_mask_split(folder, part)) for part in ("train", "val", "test")}
    assert sizes == {"train": 367, "val": 101, "test": 233}
    found = read_masks(folder)
    assert len(found) == 367
    values = decode_mask(found[0], found.legend, size=(180, 240))
    assert np.array_equal(values, np.asarray(Image.open(found[0].mask)))  # type: ignore[arg-type]


def test_unlabelled(folder: Path) -> None:
    ignoring = read_masks(folder, unlabelled="ignore")
    assert ignoring.legend.names == {0: None, 1: "road", 2: "car"}
    assert read_masks(ignoring).legend == ignoring.legend
    assert read_masks(read_masks(folder), unlabelled="ignore").legend == ignoring.legend


def test_what_is_not_mask_data(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    for thing in (tmp_path / "cats", tmp_path / "none", folder / "classes.json", folder / "images", "", 3, Pictures()):
        assert not is_mask_data(thing)


def test_a_picture_without_mask_and_the_reverse(folder: Path) -> None:
    for stem in "pqrstuv":
        add(folder, stem, mask=None)
    message = refusal(folder)
    assert message.startswith(
        f"{folder}: 7 of 10 pictures have no mask (p, q, r, s, t and 2 more); stems must be equal"
    )
    assert "images/a.jpg and masks/a.png" in message
    for stem in "pqrstuv":
        add(folder, stem)
    add(folder, "z", image=None)
    assert refusal(folder).startswith(f"{folder}: 1 of 11 masks have no picture (z); stems must be equal")


def test_suffixes_of_video_sets_are_explained(folder: Path) -> None:
    add(folder, "0001", mask=None)
    add(folder, "0001_L", image=None)
    assert refusal(folder).endswith("'0001_L' is not '0001': take the suffix off")


def test_names_in_another_unicode_form_are_the_same(folder: Path) -> None:
    add(folder, unicodedata.normalize("NFD", "é"), mask=None)
    add(folder, unicodedata.normalize("NFC", "é"), image=None)
    assert len(read_masks(folder)) == 4


def test_two_files_of_one_stem(folder: Path) -> None:
    add(folder, "b9", image=".png", mask=None)
    message = refusal(folder)
    assert "b9.jpg" in message
    assert "b9.png have the same stem; keep one" in message


def test_masks_that_are_not_png(folder: Path) -> None:
    add(folder, "c", mask=".jpg")
    assert refusal(folder) == f"{folder}/masks/c.jpg: a mask must be a PNG file; save it as one, or move it elsewhere"


def test_folders_that_lack_something(tmp_path: Path) -> None:
    assert "no such file or folder" in refusal(tmp_path / "none")
    (tmp_path / "file.zip").write_bytes(b"x")
    assert "is not a folder" in refusal(tmp_path / "file.zip")
    assert f"{tmp_path}: has no folder images" in refusal(tmp_path)
    (tmp_path / "images").mkdir()
    assert f"{tmp_path}: has no folder masks" in refusal(tmp_path)
    (tmp_path / "masks").mkdir()
    assert f"{tmp_path}/images: holds no pictures" in refusal(tmp_path)
    add(tmp_path, "a", mask=None)
    assert f"{tmp_path}/masks: holds no masks" in refusal(tmp_path)
    add(tmp_path, "a")
    assert "has no classes.json or classes.txt" in refusal(tmp_path)


def test_masked_pictures_keep_type_and_legend(folder: Path) -> None:
    found = read_masks(folder)
    for part in (found.subset([2, 0]), found[1:]):
        assert isinstance(part, MaskedPictures)
        assert part.legend == found.legend
    assert found.subset([2, 0])[0] is found[2]
    both = found[:1] + found[1:]
    assert isinstance(both, MaskedPictures)
    assert [one.name for one in both] == [one.name for one in found]
    other = found.relabelled(found.legend.keep(["car"], "background"))
    assert isinstance(other, MaskedPictures)
    assert other.classes == ("car",)
    assert other[0] is found[0]
    for left, right in ((found, other), (found, Pictures()), (Pictures(), found)):
        with pytest.raises(DataError, match="same legend"):
            left + right
    with pytest.raises(DataError, match="by class"):
        found.of(["car"])
