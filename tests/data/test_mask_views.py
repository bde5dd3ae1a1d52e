"""Views of pictures with masks: picture and mask stay aligned, sizes fit, tiles cover each pixel once."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sapwood.data.legend import BACKGROUND, IGNORE, Legend
from sapwood.data.loader import epoch_order
from sapwood.data.mask_store import MaskStore
from sapwood.data.mask_views import MaskBatch, MaskViews, fitting_size, mask_batches, tiles
from sapwood.data.masks import MaskedPictures
from sapwood.data.pictures import Picture
from sapwood.data.transforms import resized
from sapwood.errors import ConfigError

STREET = Legend({0: BACKGROUND, 1: "road", 2: "car", 9: None})
LOOKUP = STREET.lookup({"road": 2, "car": 1})


def stored(masks: list[np.ndarray]) -> MaskStore:
    """Each picture has the grey 80 · value of its mask, so that a view shows whether the two are aligned."""
    pictures = [
        Picture(f"p{index}", np.where(mask < 3, mask * 80, 240).astype(np.uint8)[..., None].repeat(3, 2), mask=mask)
        for index, mask in enumerate(masks)
    ]
    return MaskStore(MaskedPictures(pictures, STREET), 10_000)


@pytest.fixture(scope="module")
def store() -> MaskStore:
    random = np.random.default_rng(0)
    sizes = random.integers(8, 30, (11, 2))
    return stored([random.choice(np.array([0, 1, 2, 9, 255], np.uint8), size) for size in sizes])


def same(one: list[MaskBatch], other: list[MaskBatch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(left, right)
        for a, b in zip(one, other, strict=True)
        for left, right in zip(a[:3], b[:3], strict=True)
    )


def test_batches(store: MaskStore) -> None:
    views = MaskViews((10, 14), True, LOOKUP, seed=3, task=1, epoch=2)
    order = epoch_order(11, 3, 1, 2)
    loader = mask_batches(store, views, batch_size=4, order=order)
    got = list(loader)
    assert len(loader) == len(got) == 3
    assert torch.cat([batch.indices for batch in got]).tolist() == order.tolist()
    assert [batch.images.shape for batch in got] == [(4, 10, 14, 3), (4, 10, 14, 3), (3, 10, 14, 3)]
    for batch in got:
        assert (batch.images.dtype, batch.targets.dtype, batch.indices.dtype) == (torch.uint8, torch.uint8, torch.int64)
        assert batch.targets.shape == batch.images.shape[:3]
        assert set(batch.targets.unique().tolist()) <= {0, 1, 2, IGNORE}
        assert batch.saliency is None
        for image, target, index in zip(*batch[:3], strict=True):
            picture, mask = views.of(store, int(index))
            assert np.array_equal(image, picture)
            assert np.array_equal(target, mask)
    assert same(got, list(mask_batches(store, views, batch_size=4, order=order, workers=2)))
    assert same(got[2:], list(mask_batches(store, views, batch_size=4, order=order, start=2)))
    (plain,) = mask_batches(store, views, batch_size=20)
    assert plain.indices.tolist() == list(range(11))


def test_the_global_random_state_stays(store: MaskStore) -> None:
    before = torch.random.get_rng_state()
    list(mask_batches(store, MaskViews((10, 14), True, LOOKUP), batch_size=5))
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_lookup_makes_channels() -> None:
    mask = np.array([[0, 1], [2, 9]], np.uint8)
    _, target = MaskViews((2, 2), False, LOOKUP).of(stored([mask]), 0)
    assert target.tolist() == [[0, 2], [1, IGNORE]]


def test_plain_views_show_the_whole_picture() -> None:
    mask = np.array([[0, 1, 2], [2, 0, 1]], np.uint8)
    picture, target = MaskViews((8, 15), False, LOOKUP).of(stored([mask.repeat(20, 0).repeat(20, 1)]), 0)
    assert np.array_equal(target, LOOKUP[mask.repeat(4, 0).repeat(5, 1)])
    assert np.abs(picture[2::4, 2::5, 0].astype(int) - mask * 80).max() <= 1


def test_random_views_keep_picture_and_mask_together() -> None:
    """Blocks of two values: where the picture is as dark or bright as one of them, the mask must have that value."""
    blocks = 2 * np.random.default_rng(1).integers(0, 2, (5, 6)).astype(np.uint8)
    store = stored([blocks.repeat(30, 0).repeat(30, 1)])
    identity = np.arange(256, dtype=np.uint8)
    clear, views = 0, []
    for epoch in range(60):
        picture, target = MaskViews((60, 80), True, identity, epoch=epoch).of(store, 0)
        nearest = 2 * np.rint(picture[..., 0] / 160)
        sure = np.abs(picture[..., 0] - 80 * nearest) <= 2
        clear += sure.sum()
        assert set(np.unique(target)) <= {0, 2}
        assert (nearest == target)[sure].all()
        views.append(target.tobytes())
    assert clear > 0.8 * 60 * 60 * 80
    assert len(set(views)) == 60


def test_random_views_cover_half_to_all_and_keep_the_view_s_aspect() -> None:
    """A picture whose mask counts columns and whose second one counts rows shows which box was cut."""
    columns = np.broadcast_to(np.arange(200, dtype=np.uint8), (150, 200))
    rows = np.broadcast_to(np.arange(150, dtype=np.uint8)[:, None], (150, 200))
    legend = Legend(dict.fromkeys(range(255), "x"))
    pixels = np.zeros((150, 200, 3), np.uint8)
    identity = np.arange(256, dtype=np.uint8)
    stores = [
        MaskStore(MaskedPictures([Picture("p", pixels, mask=np.ascontiguousarray(mask))], legend), 999)
        for mask in (columns, rows)
    ]
    for one in stores:
        one.sha256 = ("the same",)
    areas, aspects, mirrored = [], [], 0
    for epoch in range(300):
        views = MaskViews((84, 112), True, identity, epoch=epoch)
        x, y = (views.of(one, 0)[1].astype(float) for one in stores)
        wide, tall = abs(x[0, -1] - x[0, 0]) + 1, y[-1, 0] - y[0, 0] + 1
        mirrored += x[0, -1] < x[0, 0]
        areas.append(wide * tall / (150 * 200))
        aspects.append(wide / tall)
    assert 0.48 < min(areas) < 0.55
    assert 0.9 < max(areas) <= 1.0
    assert 0.98 < min(aspects) < 1.1
    assert 1.6 < max(aspects) < 1.8
    assert 110 < mirrored < 190


@pytest.mark.parametrize("shape", [(4, 300), (300, 4), (1, 1), (1, 50), (2, 3)])
@pytest.mark.parametrize("augment", [True, False])
def test_thin_and_tiny_pictures(shape: tuple[int, int], augment: bool) -> None:
    store = stored([np.full(shape, 2, np.uint8)])
    for epoch in range(10):
        picture, target = MaskViews((12, 16), augment, LOOKUP, epoch=epoch).of(store, 0)
        assert (picture == 160).all()
        assert (target == 1).all()


def test_settings_out_of_range(store: MaskStore) -> None:
    with pytest.raises(ConfigError, match="size of a view"):
        MaskViews((0, 4), True, LOOKUP)
    with pytest.raises(ValueError, match=r"lookup must be uint8 \[256\]"):
        MaskViews((4, 4), True, LOOKUP.astype(int))
    with pytest.raises(ConfigError, match="batch_size"):
        mask_batches(store, MaskViews((4, 4), True, LOOKUP), batch_size=0)
    with pytest.raises(ConfigError, match="overlap"):
        tiles((10, 10), (5, 5), 1.0)


def test_a_view_costs_little_more_than_resizing_the_picture() -> None:
    """Box, mask, flip and lookup together cost less than half as much again (a view takes about a millisecond)."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (180, 240, 3), np.uint8)
    mask = random.integers(0, 3, (180, 240)).astype(np.uint8)
    store = MaskStore(MaskedPictures([Picture("p", pixels, mask=mask)], STREET), 180)
    plain, view = [], []
    for epoch in range(80):
        start = time.perf_counter()
        resized(pixels, (168, 224))
        plain.append(time.perf_counter() - start)
        start = time.perf_counter()
        MaskViews((168, 224), True, LOOKUP, epoch=epoch).of(store, 0)
        view.append(time.perf_counter() - start)
    assert min(view) < 1.5 * min(plain)


def test_fitting_size() -> None:
    assert fitting_size((180, 240), (168, 224), 14) == (168, 224)
    assert fitting_size((240, 180), (168, 224), 14) == (294, 224)  # 224 / 180 · 240 = 298.7 -> 21.3 patches
    assert fitting_size((512, 512), (168, 224), 14) == (224, 224)
    assert fitting_size((1, 1000), (168, 224), 14) == (168, 168_000)
    assert fitting_size((5, 5), (4, 4), 14) == (14, 14)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 25), st.integers(1, 25)),
    st.sampled_from([0.0, 0.25, 0.5, 0.9]),
)
def test_tiles_keep_each_pixel_once(picture: tuple[int, int], tile: tuple[int, int], overlap: float) -> None:
    kept = np.zeros(picture, int)
    for top, left, (first_row, first_column, last_row, last_column) in tiles(picture, tile, overlap):
        assert 0 <= top <= max(0, picture[0] - tile[0])
        assert 0 <= left <= max(0, picture[1] - tile[1])
        assert top <= first_row < last_row <= top + tile[0]
        assert left <= first_column < last_column <= left + tile[1]
        kept[first_row:last_row, first_column:last_column] += 1
    assert (kept == 1).all()


def test_tiles_overlap_and_meet_in_the_middle() -> None:
    found = tiles((100, 260), (100, 100), 0.25)
    assert [tile.left for tile in found] == [0, 53, 107, 160]
    assert [tile.keep[1::2] for tile in found] == [(0, 76), (76, 130), (130, 183), (183, 260)]
    assert tiles((100, 100), (100, 100)) == [(0, 0, (0, 0, 100, 100))]
    assert tiles((30, 40), (100, 100)) == [(0, 0, (0, 0, 30, 40))]
