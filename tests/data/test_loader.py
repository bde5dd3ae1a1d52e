"""Batches: the same whatever the workers, resumable, and quiet about the global random state."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sapwood.data.loader import Batch, Views, balanced_order, batches, epoch_order
from sapwood.data.pictures import Picture, Pictures
from sapwood.data.store import PictureStore
from sapwood.data.transforms import eval_view, train_view, view_key
from sapwood.errors import ConfigError


@pytest.fixture(scope="module")
def store() -> PictureStore:
    random = np.random.default_rng(0)
    sizes = random.integers(8, 20, (23, 2))
    pictures = [Picture(str(n), random.integers(0, 256, (*size, 3), np.uint8), "x") for n, size in enumerate(sizes)]
    return PictureStore(Pictures(pictures), 12)


TARGETS = torch.arange(23) * 10


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(left, right) for a, b in zip(one, other, strict=True) for left, right in zip(a, b, strict=True)
    )


def test_views_targets_and_indices_belong_together(store: PictureStore) -> None:
    views = Views(10, True, seed=3, task=1, epoch=2)
    order = epoch_order(23, 3, 1, 2)
    loader = batches(store, TARGETS, views, batch_size=5, order=order)
    got = list(loader)
    assert len(loader) == len(got) == 5
    assert [len(batch.targets) for batch in got] == [5, 5, 5, 5, 3]
    assert torch.cat([batch.indices for batch in got]).tolist() == order.tolist()
    for batch in got:
        assert (batch.images.dtype, batch.targets.dtype, batch.indices.dtype) == (torch.uint8, torch.int64, torch.int64)
        assert batch.images.shape == (len(batch.targets), 10, 10, 3)
        for image, target, index in zip(*batch, strict=True):
            assert target == 10 * index
            expected = train_view(store[index], 10, view_key(3, 1, 2, store.sha256[index]))
            assert np.array_equal(image.numpy(), expected)


def test_without_augmentation_the_central_view_in_the_store_s_order(store: PictureStore) -> None:
    (batch,) = batches(store, TARGETS, Views(10, False, epoch=9), batch_size=64)
    assert batch.indices.tolist() == list(range(23))
    assert all(np.array_equal(batch.images[n].numpy(), eval_view(store[n], 10)) for n in range(23))


def test_workers_change_nothing(store: PictureStore) -> None:
    views = Views(10, True)
    order = epoch_order(23, 0, 0, 0)
    alone = list(batches(store, TARGETS, views, batch_size=4, order=order))
    assert same(alone, list(batches(store, TARGETS, views, batch_size=4, order=order, workers=2)))
    again = batches(store, TARGETS, views, batch_size=4, order=order)
    assert same(list(again), list(again))
    assert same(alone[4:], list(batches(store, TARGETS, views, batch_size=4, order=order, start=4, workers=1)))


def test_start_touches_no_picture_before_it(store: PictureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[int] = []
    get = PictureStore.__getitem__
    monkeypatch.setattr(PictureStore, "__getitem__", lambda self, index: (touched.append(index), get(self, index))[1])
    rest = batches(store, TARGETS, Views(10, False), batch_size=5, start=3)
    assert (len(rest), len(list(rest))) == (2, 2)
    assert touched == list(range(15, 23))
    assert list(batches(store, TARGETS, Views(10, False), batch_size=5, start=5)) == []


def test_the_global_random_state_stays(store: PictureStore) -> None:
    before = torch.random.get_rng_state()
    numpy_before = np.random.get_state()[1].copy()  # type: ignore[index]
    list(batches(store, TARGETS, Views(10, True), batch_size=5))
    list(batches(store, TARGETS, Views(10, True), batch_size=5, workers=1))
    epoch_order(10, 0, 0, 0)
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])  # type: ignore[index]


def test_epochs_differ_and_repeat() -> None:
    assert sorted(epoch_order(50, 0, 0, 0)) == list(range(50))
    orders = {epoch_order(50, *key).tobytes() for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))}
    assert len(orders) == 4
    assert np.array_equal(epoch_order(50, 1, 2, 3), epoch_order(50, 1, 2, 3))


def test_settings_out_of_range(store: PictureStore) -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        batches(store, TARGETS, Views(10, True), batch_size=0)
    with pytest.raises(ConfigError, match="image_size"):
        Views(0, True)
    with pytest.raises(ValueError, match="22 targets for 23 pictures"):
        batches(store, TARGETS[1:], Views(10, True), batch_size=4)


UNEVEN = [0] * 14 + [5] * 6 + [9] * 3


def test_balanced_epochs_show_all_classes_equally_often_and_every_picture_in_turn() -> None:
    times = np.zeros(23, int)
    for epoch in range(12):
        places = balanced_order(UNEVEN, seed=3, task=1, epoch=epoch)
        assert len(places) == len(set(places.tolist())) == 23
        shown = np.bincount(np.array(UNEVEN)[places % 23], minlength=10)[[0, 5, 9]]
        assert sorted(shown) in ([7, 8, 8], [8, 8, 7])
        times += np.bincount(places % 23, minlength=23)
        for index, count in enumerate(np.bincount(places % 23, minlength=23)):
            assert sorted(places[places % 23 == index] // 23) == list(range(count))
    for first, end in ((0, 14), (14, 20), (20, 23)):
        assert times[first:end].sum() == 92
        assert times[first:end].max() - times[first:end].min() <= 1


def test_a_balanced_order_is_a_function_of_its_arguments() -> None:
    orders = {
        tuple(balanced_order(UNEVEN, *key).tolist())
        for key in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))
        for _ in "ab"
    }
    assert len(orders) == 4
    assert np.array_equal(balanced_order([4, 4, 8, 8], 1, 2, 3), epoch_order(4, 1, 2, 3))
    assert np.array_equal(balanced_order([4] * 5, 1, 2, 3), epoch_order(5, 1, 2, 3))
    assert len(balanced_order([], 0, 0, 0)) == 0


def test_a_picture_that_comes_again_is_seen_otherwise(store: PictureStore) -> None:
    views = Views(10, True, seed=1)
    (batch,) = batches(store, TARGETS, views, batch_size=4, order=[2, 25, 48, 2])
    assert batch.indices.tolist() == [2, 2, 2, 2]
    assert batch.targets.tolist() == [20] * 4
    pixels = [image.numpy().tobytes() for image in batch.images]
    assert len(set(pixels)) == 3
    assert pixels[0] == pixels[3]
    (plain,) = batches(store, TARGETS, Views(10, False), batch_size=2, order=[2, 25])
    assert torch.equal(plain.images[0], plain.images[1])
