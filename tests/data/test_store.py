"""The store decodes once, keeps what is good, and says what is bad."""

from __future__ import annotations

import gc
import os
import pickle
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sapwood.data.decode import content_sha256, decode
from sapwood.data.pictures import Picture, Pictures
from sapwood.data.sources import read_data
from sapwood.data.store import PictureStore
from sapwood.errors import DataError, SapwoodError


@pytest.fixture
def folder(uneven_folder: Callable[[int], Path]) -> Path:
    return uneven_folder(12)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("budget", [2**20, 10_000, 0], ids=["memory", "both", "disk"])
def test_what_is_stored_is_what_is_decoded(folder: Path, workers: int, budget: int) -> None:
    pictures = read_data(folder)
    steps: list[tuple[int, int]] = []
    store = PictureStore(pictures, 24, workers=workers, budget=budget, progress=lambda *at: steps.append(at))
    assert steps == [(number, 24) for number in range(1, 25)]
    assert len(store) == 24
    assert store.bad == ()
    assert store.sha256 == tuple(content_sha256(one) for one in pictures)
    for index, picture in enumerate(pictures):
        assert np.array_equal(store[index], decode(picture, shorter=24))
    part = store.subset([23, 0, 5])
    again = part.subset([2, -3])
    assert part.pictures.labels == ("dog", "cat", "cat")
    assert np.array_equal(again[0], store[5])
    assert np.array_equal(again[1], store[23])
    assert again.sha256 == (store.sha256[5], store.sha256[23])
    copy = pickle.loads(pickle.dumps(part))
    assert all(np.array_equal(copy[index], part[index]) for index in range(3))
    with pytest.raises(IndexError):
        part[3]


def test_each_file_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: (reads.append(str(self)), read_bytes(self))[1])
    store = PictureStore(read_data(folder), 24)
    assert len(reads) == len(set(reads)) == len(store) == len(store.sha256)


def test_the_files_may_go_once_they_are_stored(folder: Path) -> None:
    pictures = read_data(folder)
    expected = decode(pictures[3], shorter=24)
    store = PictureStore(pictures, 24)
    for picture in pictures:
        Path(picture.name).unlink()
    assert np.array_equal(store[3], expected)


def test_the_temporary_file_goes_with_the_store(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "space"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    there: list[int] = []
    store = PictureStore(
        read_data(folder), 24, budget=1000, progress=lambda *_: there.append(len(list(place.iterdir())))
    )
    if sys.platform == "linux":
        assert max(there) == 0, "a killed process would leave it behind"
    part = store.subset([1])
    del store
    gc.collect()
    assert part[0].shape[2] == 3
    del part
    gc.collect()
    assert not list(place.iterdir())
    with pytest.raises(DataError):
        PictureStore(read_data(folder) + Pictures([Picture("x", b"")]), 24, budget=1000)
    gc.collect()
    assert not list(place.iterdir())


def test_bad_pictures_stop_or_are_left_out(folder: Path) -> None:
    (folder / "cat" / "3.png").write_bytes(b"")
    (folder / "dog" / "5.png").write_text("text")
    pictures = read_data(folder)
    with pytest.raises(DataError) as caught:
        PictureStore(pictures, 24)
    message = str(caught.value)
    assert message.startswith("2 of 24 pictures cannot be read: ")
    assert str(folder / "cat" / "3.png") in message
    assert "--skip-bad" in message
    assert message.isprintable()
    store = PictureStore(pictures, 24, skip_bad=True)
    assert len(store) == len(store.pictures) == len(store.sha256) == 22
    assert [name for name, _ in store.bad] == [str(folder / "cat" / "3.png"), str(folder / "dog" / "5.png")]
    assert "(0 bytes)" in store.bad[0][1]
    for index, picture in enumerate(store.pictures):
        assert np.array_equal(store[index], decode(picture, shorter=24))


def test_only_five_bad_pictures_are_shown(folder: Path) -> None:
    for index in range(8):
        (folder / "cat" / f"{index}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"^8 of 24 .*4\.png .*; and 3 more\. Mend"):
        PictureStore(read_data(folder), 24)


def test_a_class_that_would_vanish_is_an_error_even_then(folder: Path) -> None:
    for file in (folder / "cat").iterdir():
        file.write_bytes(b"")
    with pytest.raises(DataError, match="no readable picture is left of class 'cat'"):
        PictureStore(read_data(folder), 24, skip_bad=True)
    with pytest.raises(DataError, match="none is left"):
        PictureStore(Pictures([Picture("x", b"")]), 24, skip_bad=True)


def test_the_pixel_limit_holds(folder: Path) -> None:
    with pytest.raises(DataError, match=r"24 of 24 pictures .*limit of 100;"):
        PictureStore(read_data(folder), 24, pixel_limit=100)


def test_stored_pixels_cannot_be_changed_by_accident(folder: Path) -> None:
    for budget in (0, 2**20):
        with pytest.raises(ValueError, match="read-only"):
            PictureStore(read_data(folder), 24, budget=budget)[0][:] = 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device here that is always full")
@pytest.mark.parametrize("budget", [0, 10_000])
def test_a_full_disk_is_said_in_one_line(folder: Path, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = folder / "buffer"
    monkeypatch.setattr(tempfile, "mkstemp", lambda **names: (os.open("/dev/full", os.O_RDWR), str(gone)))
    with pytest.raises(SapwoodError, match=r"no space left on .* for decoded pictures") as caught:
        PictureStore(read_data(folder), 24, budget=budget)
    assert caught.value.exit_code == 1


def test_stopping_in_the_middle_closes_everything(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "space"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))

    def stop(done: int, total: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        PictureStore(read_data(folder), 24, budget=0, workers=3, progress=stop)
    gc.collect()
    assert threading.active_count() == before
    assert not list(place.iterdir())
