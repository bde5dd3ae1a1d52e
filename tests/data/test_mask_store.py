"""The store decodes pictures and masks once, keeps them together, and says what is bad."""

from __future__ import annotations

import gc
import io
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sapwood.data.decode import content_sha256, decode
from sapwood.data.legend import BACKGROUND, Legend
from sapwood.data.mask_store import MaskStore, visible_share
from sapwood.data.masks import MaskedPictures, read_masks
from sapwood.data.pictures import Picture
from sapwood.errors import DataError

STREET = Legend({0: BACKGROUND, 1: "road", 2: "car", 9: None})


def made(count: int = 9, seed: int = 0) -> MaskedPictures:
    random = np.random.default_rng(seed)
    pictures = []
    for index in range(count):
        size = random.integers(20, 40, 2)
        pixels = random.integers(0, 256, (*size, 3), np.uint8)
        mask = random.choice(np.array([0, 1, 2, 9, 255], np.uint8), size)
        pictures.append(Picture(f"p{index}", pixels, mask=mask))
    return MaskedPictures(pictures, STREET)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("budget", [2**20, 8_000, 0], ids=["memory", "both", "disk"])
def test_what_is_stored_is_what_is_decoded(workers: int, budget: int) -> None:
    pictures = made()
    steps: list[tuple[int, int]] = []
    store = MaskStore(pictures, 100, workers=workers, budget=budget, progress=lambda *at: steps.append(at))
    assert steps == [(number, 9) for number in range(1, 10)]
    assert (len(store), store.bad) == (9, ())
    assert store.counts.shape == (9, 256)
    assert store.counts.dtype == np.int64
    for index, picture in enumerate(pictures):
        mask: Any = picture.mask
        assert np.array_equal(store[index], picture.source)
        assert np.array_equal(store.mask(index), mask)
        assert [store.counts[index, value] for value in (0, 1, 2, 9, 255)] == [
            (mask == value).sum() for value in (0, 1, 2, 9, 255)
        ]
        assert store.counts[index].sum() == mask.size
    part = store.subset([8, 0, 5]).subset([2, -3])
    assert isinstance(part.pictures, MaskedPictures)
    assert [one.name for one in part.pictures] == ["p5", "p8"]
    copy = pickle.loads(pickle.dumps(part)) if workers == 1 else part
    for row, index in enumerate((5, 8)):
        assert np.array_equal(copy[row], store[index])
        assert np.array_equal(copy.mask(row), store.mask(index))
        assert np.array_equal(copy.counts[row], store.counts[index])
        assert copy.sha256[row] == store.sha256[index]
    with pytest.raises(IndexError):
        store.subset([9])


def test_masks_shrink_with_their_pictures_and_keep_their_values() -> None:
    """Blocks of 8 × 8 pixels, reduced to an eighth: each block becomes its one value, counts stay in full size."""
    small = np.random.default_rng(0).choice(np.array([0, 2, 255], np.uint8), (10, 15))
    mask = small.repeat(8, 0).repeat(8, 1)
    picture = Picture("p", np.zeros((80, 120, 3), np.uint8), mask=mask)
    store = MaskStore(MaskedPictures([picture], STREET), 10)
    assert store[0].shape == (10, 15, 3)
    assert np.array_equal(store.mask(0), small)
    assert store.counts[0, 2] == 64 * (small == 2).sum()


@pytest.mark.parametrize("shape", [(1, 1), (1, 60), (60, 1), (3, 2)])
def test_tiny_pictures(shape: tuple[int, int]) -> None:
    picture = Picture("p", np.zeros((*shape, 3), np.uint8), mask=np.full(shape, 2, np.uint8))
    store = MaskStore(MaskedPictures([picture], STREET), 16)
    assert store[0].shape[:2] == store.mask(0).shape == shape
    assert visible_share(store, STREET, (12, 16)) == {"car": 1.0}


def jpeg(width: int, height: int, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "JPEG", exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("shorter", [8, 300])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_have_the_size_of_the_upright_picture(orientation: int, shorter: int) -> None:
    """Also when the JPEG decoder itself reduces the picture, so that its full size is never seen."""
    upright = (160, 240) if orientation < 5 else (240, 160)
    content = jpeg(240, 160, orientation)
    good = Picture("good", content, mask=np.ones(upright, np.uint8))
    store = MaskStore(MaskedPictures([good], STREET), shorter)
    assert store.mask(0).shape == store[0].shape[:2]
    lying = Picture("lying", content, mask=np.ones(upright[::-1], np.uint8))
    with pytest.raises(DataError, match=r"mask of lying \(is .* once turned upright as its EXIF says"):
        MaskStore(MaskedPictures([lying], STREET), shorter)


def test_each_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        for index in range(5):
            Image.new("L", (6, 4), 1).save(tmp_path / kind / f"{index}.png")
    (tmp_path / "classes.json").write_text('["background", "road"]')
    reads: list[str] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: (reads.append(self.name), read_bytes(self))[1])
    pictures = read_masks(tmp_path)
    assert reads == ["classes.json"]
    MaskStore(pictures, 24)
    assert sorted(reads[1:]) == sorted(f"{index}.png" for index in range(5) for _ in range(2))


def test_the_sum_is_of_picture_and_mask() -> None:
    pictures = made(1)
    picture = pictures[0]
    mask: Any = picture.mask
    other = Picture("other", picture.source, mask=np.where(mask == 1, 2, mask).astype(np.uint8))
    third = Picture("third", np.array(picture.source) ^ 1, mask=mask)
    sums = MaskStore(MaskedPictures([picture, other, third], STREET), 100).sha256
    assert len(set(sums)) == 3
    assert content_sha256(picture) not in sums
    assert MaskStore(made(1), 8).sha256 == sums[:1]


def test_bad_ones_stop_or_are_left_out() -> None:
    good = made(4)
    bad = MaskedPictures(
        [
            Picture("empty", b"", mask=np.zeros((2, 2), np.uint8)),
            Picture("strange", np.zeros((2, 2, 3), np.uint8), mask=np.full((2, 2), 7, np.uint8)),
            Picture("wide", np.zeros((2, 2, 3), np.uint8), mask=np.full((2, 3), 1, np.uint8)),
            Picture("bare", np.zeros((2, 2, 3), np.uint8)),
        ],
        STREET,
    )
    with pytest.raises(DataError) as caught:
        MaskStore(bad + good, 24)
    message = str(caught.value)
    assert message.startswith("4 of 8 pictures or masks cannot be used: empty (the file is empty (0 bytes)")
    assert "; mask of strange (holds the value 7, which no class has" in message
    assert "--skip-bad" in message
    store = MaskStore(bad + good, 24, skip_bad=True)
    assert [one.name for one in store.pictures] == ["p0", "p1", "p2", "p3"]
    assert [name for name, _ in store.bad] == ["empty", "mask of strange", "mask of wide", "bare"]
    for index, picture in enumerate(good):
        assert np.array_equal(store[index], decode(picture, shorter=24))
    with pytest.raises(DataError, match="none is left"):
        MaskStore(bad, 24, skip_bad=True)


def test_stopping_in_the_middle_closes_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def stop(done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        MaskStore(made(), 24, budget=0, workers=2, progress=stop)
    store = MaskStore(made(), 24, budget=0)
    assert store.mask(3).shape == store[3].shape[:2]
    del store
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_what_a_grid_can_show() -> None:
    """Four cells of 2 × 2: all road; three road and one car; a tie with background; one car and three ignored."""
    mask = np.array([[1, 1, 1, 1], [1, 1, 1, 2], [0, 0, 9, 255], [2, 2, 2, 9]], np.uint8)
    picture = Picture("p", np.zeros((4, 4, 3), np.uint8), mask=mask)
    store = MaskStore(MaskedPictures([picture, picture], STREET), 4)
    assert visible_share(store, STREET, (2, 2)) == {"road": 1.0, "car": 3 / 4}
    assert visible_share(store, STREET, (1, 1)) == {"road": 1.0, "car": 0.0}
    assert visible_share(store, STREET, (4, 1)) == {"road": 1.0, "car": 3 / 4}
    assert visible_share(store, STREET, (1, 4)) == {"road": 1.0, "car": 1 / 4}
    assert visible_share(store, STREET, (4, 4)) == {"road": 1.0, "car": 1.0}
    assert visible_share(store, STREET.keep(["car"], "background"), (2, 2)) == {"car": 3 / 4}
    assert visible_share(store, STREET.keep(["car"], "ignore"), (1, 1)) == {"car": 1.0}
    assert visible_share(store, Legend({0: BACKGROUND, 1: "road", 2: "car", 5: "tree"}), (2, 2)).keys() == {
        "road",
        "car",
    }


def test_what_the_patches_of_camvid_can_show(shared_data: Path) -> None:
    pictures = read_masks(shared_data / "camvid")
    store = MaskStore(pictures.subset(range(0, 367, 12)), 180)
    share = visible_share(store, pictures.legend, (12, 16))
    assert list(share) == list(pictures.classes)
    assert all(share[name] > 0.65 for name in ("Sky", "Building", "Road", "Tree", "Car", "Pavement"))
    assert share["Pole"] < 0.15
