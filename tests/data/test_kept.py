"""Pictures for which there is no room are decoded anew at every look, and are then what they were."""

from __future__ import annotations

import pickle
import shutil
import tempfile
import threading
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sapwood.data.loader
import sapwood.data.mask_store
import sapwood.data.store
from sapwood.data.loader import Views, batches
from sapwood.data.mask_store import MaskStore, visible_share
from sapwood.data.mask_views import MaskViews, mask_batches
from sapwood.data.masks import read_masks
from sapwood.data.pictures import Picture, Pictures
from sapwood.data.sources import read_data
from sapwood.data.store import PictureStore
from sapwood.errors import DataError
from sapwood.kinds import KINDS
from sapwood.learner import Learner
from sapwood.progress import Progress

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def folder(uneven_folder: Callable[[int], Path]) -> Path:
    return uneven_folder(6)


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in memory nor on the disk."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10, 10, 0))
    for store in (PictureStore, MaskStore):
        monkeypatch.setitem(store.__init__.__kwdefaults__, "budget", 0)


def equal(one: Any, other: Any) -> bool:
    return all(
        left is right is None or torch.equal(left, right)
        for pair in zip(one, other, strict=True)
        for left, right in zip(*pair, strict=True)
    )


@pytest.mark.parametrize(("budget", "limit", "anew"), [(0, 0, 12), (0, 15_000, 6), (15_000, 0, 6), (15_000, 15_000, 6)])
def test_pixels_are_the_same_wherever_they_come_from(
    folder: Path, decoded: list[str], budget: int, limit: int, anew: int
) -> None:
    pictures = read_data(folder)
    kept = PictureStore(pictures, 24)
    store = PictureStore(pictures, 24, budget=budget, limit=limit)
    assert (kept.anew, store.anew) == (0, anew), "six take 14,958 bytes"
    assert store.sha256 == kept.sha256
    del decoded[:]
    for index in range(12):
        assert np.array_equal(store[index], kept[index])
        assert store.size(index) == kept.size(index) == kept[index].shape[:2]
        with pytest.raises(ValueError, match="read-only"):
            store[index][:] = 0
    assert len(decoded) == anew
    part = store.subset([11, 0, 5]).subset([0, 1])
    copy = pickle.loads(pickle.dumps(part))  # as data workers get it that were not forked
    assert part.anew == store.subset([11, 0]).anew == (2 if anew == 12 else 1)
    for index, whole in enumerate((11, 0)):
        assert np.array_equal(part[index], kept[whole])
        assert np.array_equal(copy[index], kept[whole])


@pytest.mark.parametrize("workers", [0, 2])
def test_views_are_the_same_and_each_picture_is_decoded_once_for_one(
    folder: Path, decoded: list[str], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[threading.Thread] = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda thread: (begun.append(thread), start(thread))[1])
    monkeypatch.setattr(sapwood.data.loader, "usable_threads", lambda: 2)
    pictures, targets, views = read_data(folder), torch.arange(12), Views(10, True)
    kept, store = PictureStore(pictures, 24), PictureStore(pictures, 24, budget=0, limit=0)
    del decoded[:], begun[:]
    again = list(batches(store, targets, views, batch_size=5, workers=workers))
    assert sum(thread.name.startswith("decode") for thread in begun) == (0 if workers else 2)
    assert equal(again, batches(kept, targets, views, batch_size=5))
    # Workers decode in processes of their own; here nothing is.
    assert sorted(decoded) == ([] if workers else sorted(picture.name for picture in pictures))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_changed_or_went_is_named_in_one_line(folder: Path, workers: int) -> None:
    pictures = read_data(folder)
    store = PictureStore(pictures, 24, budget=0, limit=0)
    name = pictures[7].name
    Image.new("RGB", (21, 39)).save(name)
    loaded = batches(store, torch.arange(12), Views(10, True), batch_size=5, workers=workers)
    with pytest.raises(DataError) as caught:
        list(loaded)
    assert str(caught.value).startswith(f"{name}: has changed since this command first read it")
    assert str(caught.value).isprintable()
    Path(name).unlink()
    with pytest.raises(DataError, match=r"^[^\n]*: no such file$"):
        list(loaded)


def test_the_disk_s_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    one = Pictures([Picture("x", np.zeros((4, 5, 3), np.uint8))])
    for free, limit in ((119, 59), (120, 60), (10**13, 64 * 2**30)):
        usage = Usage(10**15, 0, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: (asked.append(path), usage)[1])
        store = PictureStore(one, 4, budget=0)
        assert (store.limit, store.anew) == (limit, int(limit < 60)), "it takes 60 bytes"
    assert set(asked) == {tempfile.gettempdir()}


def test_bad_pictures_are_known_though_nothing_is_kept(folder: Path) -> None:
    (folder / "cat" / "3.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"^1 of 12 pictures cannot be read: .*3\.png"):
        PictureStore(read_data(folder), 24, budget=0, limit=0)
    store = PictureStore(read_data(folder), 24, skip_bad=True, budget=0, limit=0)
    assert (len(store), store.anew, [Path(name).name for name, _ in store.bad]) == (11, 11, ["3.png"])
    assert store.pictures[3].name == str(folder / "cat" / "4.png")
    assert np.array_equal(store[3], PictureStore(read_data(folder), 24, skip_bad=True)[3])


def test_masks_are_the_same(mask_folder: Callable[..., Path], decoded: list[str]) -> None:
    pictures = read_masks(mask_folder(["road", "car"], 5, size=[(28, 42), (40, 30)]))
    kept, store = MaskStore(pictures, 20), MaskStore(pictures, 20, budget=0, limit=5000)
    assert (kept.anew, store.anew) == (0, 3), "picture and mask take 4 * 20 * 30 = 2400 bytes, or 4 * 27 * 20 = 2160"
    assert store.sha256 == kept.sha256
    assert store.picture_sha256 == kept.picture_sha256
    assert np.array_equal(store.counts, kept.counts)
    assert visible_share(store, pictures.legend, (2, 3)) == visible_share(kept, pictures.legend, (2, 3))
    table = pictures.legend.lookup({"background": 0, "road": 1, "car": 2})
    views = MaskViews((14, 21), True, table)
    for workers in (0, 2):
        del decoded[:]
        again = mask_batches(store, views, batch_size=2, workers=workers)
        assert equal(again, mask_batches(kept, views, batch_size=2))
        assert len(decoded) == (0 if workers else 3), "one look gives picture and mask"
    changed = pictures[4].mask
    assert isinstance(changed, Path)
    Image.fromarray(np.ones((28, 42), np.uint8)).save(changed)
    with pytest.raises(DataError, match=r"004\.png: has changed"):
        store.mask(4)


class Notes(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.usefixtures("no_room")
def test_a_round_learned_so_ends_with_the_same_tensors(
    picture_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = picture_folder(["ant", "bee"], 5)
    learned = []
    for name in ("anew", "kept"):
        notes = Notes()
        training = {"epochs": 2, "batch_size": 4, "precision": "fp32"}
        learner = Learner.create(
            tmp_path / name,
            backbone="random:dinov2-tiny",
            method="seq-lora",
            image_size=28,
            settings={"training": training},
            device="cpu",
        )
        learner.learn(data, progress=notes)
        learned.append(learner.state.version.record["files"])
        said = [line for line in notes.lines if "decoded anew" in line]
        if name == "anew":
            assert len(said) == 1
            assert said[0].startswith("10 of 10 pictures are decoded anew at every look: beyond 0.0 GB of pixels ")
            monkeypatch.undo()
        else:
            assert not said
    assert learned[0] == learned[1]


@pytest.mark.usefixtures("no_room")
def test_what_is_predicted_is_the_same_too(picture_folder: Callable[..., Path]) -> None:
    given = read_data(picture_folder(["ant", "bee"], 3))
    notes = Notes()
    store = KINDS["classification"].load(given, 28, notes, skip_bad=False)
    assert store.anew == 6
    assert len(notes.lines) == 1
