"""Saliency maps beside pictures and masks: paired, read, shown by the same crop; every bad one gets its line."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sapwood.data.legend import BACKGROUND, Legend
from sapwood.data.mask_store import MaskStore
from sapwood.data.mask_views import MaskViews, mask_batches
from sapwood.data.masks import MaskedPictures, read_mask_split, read_masks
from sapwood.data.pictures import Picture
from sapwood.errors import DataError

SIZES = ((12, 18), (20, 10), (9, 9))
IDENTITY = np.arange(256, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures whose masks are at the same time their saliency maps, so that alignment can be seen."""
    place, random = tmp_path / "street", np.random.default_rng(0)
    for kind in ("images", "masks", "saliency"):
        (place / kind).mkdir(parents=True)
    for number, (height, width) in enumerate(SIZES):
        values = random.integers(0, 3, (height, width), np.uint8)
        Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(place / "images" / f"{number}.png")
        for kind in ("masks", "saliency"):
            Image.fromarray(values).save(place / kind / f"{number}.png")
    (place / "classes.json").write_text('{"background": 0, "road": 1, "car": 2}')
    return place


def refusal(folder: Path) -> str:
    """One line, from reading the folder or from decoding it."""
    with pytest.raises(DataError) as caught:
        MaskStore(read_masks(folder), 100, workers=1)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_maps_pair_by_stem_and_only_where_there_is_a_folder(folder: Path) -> None:
    assert [one.saliency for one in read_masks(folder)] == [
        folder / "saliency" / f"{number}.png" for number in (0, 1, 2)
    ]
    (folder / "saliency").rename(folder / "Saliency")
    assert read_masks(folder)[1].saliency == folder / "Saliency" / "1.png"
    (folder / "Saliency").rename(folder / "other")
    assert [one.saliency for one in read_masks(folder)] == [None] * 3
    store = MaskStore(read_masks(folder), 100)
    assert store.saliency(0) is None
    (batch,) = mask_batches(store, MaskViews((6, 6), True, IDENTITY), batch_size=3)
    assert batch.saliency is None


def test_maps_in_parts(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    folder.rename(root / "train")
    (root / "test" / "images").mkdir(parents=True)
    (root / "test" / "masks").mkdir()
    for kind in ("images", "masks"):
        Image.new("L", (4, 4)).save(root / "test" / kind / "x.png")
    (root / "classes.json").write_text('{"background": 0, "road": 1, "car": 2}')
    assert read_masks(root)[2].saliency == root / "train" / "saliency" / "2.png"
    assert read_mask_split(root, "test")[0].saliency is None


@pytest.mark.parametrize("budget", [2**20, 0], ids=["memory", "disk"])
def test_maps_are_stored_and_go_along_into_parts(folder: Path, budget: int) -> None:
    store = MaskStore(read_masks(folder), 100, budget=budget)
    part = store.subset([2, 0])
    part = pickle.loads(pickle.dumps(part)) if budget else part
    for row, index in enumerate((2, 0)):
        values = np.asarray(Image.open(folder / "saliency" / f"{index}.png"))
        assert np.array_equal(part.saliency(row), values)
    small = MaskStore(read_masks(folder), 5)
    for index in range(3):
        assert np.array_equal(small.saliency(index), small.mask(index))
        assert small.saliency(index).shape == small[index].shape[:2]  # type: ignore[union-attr]


@pytest.mark.parametrize("augment", [True, False])
def test_views_show_the_map_where_they_show_the_mask(folder: Path, augment: bool) -> None:
    store = MaskStore(read_masks(folder), 100)
    for epoch in range(8):
        views = MaskViews((8, 12), augment, IDENTITY, seed=1, epoch=epoch)
        got = list(mask_batches(store, views, batch_size=2))
        for batch in got:
            assert batch.saliency is not None
            assert (batch.saliency.dtype, batch.saliency.shape) == (torch.uint8, batch.targets.shape)
            assert torch.equal(batch.saliency, batch.targets)
            assert len(batch.targets.unique()) > 1
    again = list(mask_batches(store, views, batch_size=2, workers=1))
    assert all(torch.equal(one.saliency, two.saliency) for one, two in zip(got, again, strict=True))


def test_another_map_is_another_picture_for_a_round(folder: Path) -> None:
    with_map = MaskStore(read_masks(folder), 100).sha256
    Image.new("1", SIZES[1][::-1], 1).save(folder / "saliency" / "1.png")
    changed = MaskStore(read_masks(folder), 100)
    assert changed.saliency(1).tolist() == np.ones(SIZES[1]).tolist()  # type: ignore[union-attr]
    assert [one == two for one, two in zip(with_map, changed.sha256, strict=True)] == [True, False, True]
    for file in (folder / "saliency").iterdir():
        file.unlink()
    (folder / "saliency").rmdir()
    assert not set(with_map) & set(MaskStore(read_masks(folder), 100).sha256)


def test_a_palette_means_its_indices(folder: Path) -> None:
    image = Image.fromarray(np.array([[0, 3] * 9] * 12, np.uint8)).convert("P")
    image.putpalette([255, 255, 255] * 4)
    image.save(folder / "saliency" / "0.png")
    found = MaskStore(read_masks(folder), 100).saliency(0)
    assert found is not None
    assert (found > 0).tolist() == [[False, True] * 9] * 12


def test_a_picture_without_map_and_the_reverse(folder: Path) -> None:
    (folder / "saliency" / "1.png").rename(folder / "saliency" / "1_sal.png")
    assert refusal(folder) == (
        f"{folder}: 1 of 3 pictures have no saliency map (1) and 1 of 3 saliency maps have no picture (1_sal); stems "
        "must be equal, as in images/a.jpg and saliency/a.png; '1_sal' is not '1': take the suffix off"
    )
    for file in (folder / "saliency").iterdir():
        file.unlink()
    assert "3 of 3 pictures have no saliency map (0, 1, 2); stems must be equal" in refusal(folder)


def test_joining_pictures_with_and_without_maps(folder: Path) -> None:
    legend = Legend({0: BACKGROUND, 1: "road", 2: "car"})
    bare = MaskedPictures([Picture("bare", np.zeros((4, 4, 3), np.uint8), mask=np.zeros((4, 4), np.uint8))], legend)
    with pytest.raises(DataError) as caught:
        MaskStore(read_masks(folder) + bare, 100)
    message = str(caught.value)
    assert message.startswith("1 of 4 pictures, masks or saliency maps cannot be used: bare (has no saliency map, but")
    assert "take the folder saliency away" in message


def test_bad_maps(folder: Path) -> None:
    file = folder / "saliency" / "2.png"
    for image, expected in (
        (Image.new("L", (9, 8)), "is 9 x 8 pixels, but its picture is 9 x 9; a saliency map must be of its picture's"),
        (Image.new("RGB", (9, 9)), "is a picture of mode RGB, not a saliency map; save it as grey PNG"),
        (Image.new("LA", (9, 9)), "is a picture of mode LA, not a saliency map; save it as grey PNG"),
        (Image.new("I;16", (9, 9)), "has more than 8 bits a pixel; save the saliency map with 8 bits"),
    ):
        image.save(file)
        message = refusal(folder)
        assert message.startswith("1 of 3 pictures, masks or saliency maps cannot be used: ")
        assert f"{file} ({expected}" in message
    file.write_bytes(file.read_bytes()[:40])
    assert f"{file} (" in refusal(folder)
    file.unlink()
    Image.new("L", (9, 9)).save(file.with_suffix(".jpg"))
    assert refusal(folder) == (
        f"{file.with_suffix('.jpg')}: a saliency map must be a PNG file; save it as one, or move it elsewhere"
    )
