"""Which values masks hold is read once and remembered, until a file or the legend changes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sapwood.data.label_sets import label_sets
from sapwood.data.legend import Legend
from sapwood.data.masks import MaskedPictures
from sapwood.data.pictures import Picture
from sapwood.errors import DataError

LEGEND = Legend({0: "background", 1: "pond", 2: "bed"})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAPWOOD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pictures(tmp_path: Path, cache: Path) -> MaskedPictures:
    masks = {"a": (0, 1, 1, 255), "b": (2,), "c": (0,)}
    for name, values in masks.items():
        Image.fromarray(np.array([values], np.uint8)).save(tmp_path / f"{name}.png")
    zeros = np.zeros((1, 4, 3), np.uint8)
    return MaskedPictures((Picture(name, zeros, mask=tmp_path / f"{name}.png") for name in masks), LEGEND)


SETS = [{0, 1, 255}, {2}, {0}]


def test_values_of_each_mask(pictures: MaskedPictures, cache: Path) -> None:
    assert label_sets(pictures) == SETS
    assert len(list((cache / "label-sets").iterdir())) == 1
    assert label_sets(pictures) == SETS
    assert label_sets(pictures[1:]) == SETS[1:]
    assert label_sets(MaskedPictures([], LEGEND)) == []


def test_files_are_opened_again_only_when_they_changed(pictures: MaskedPictures) -> None:
    label_sets(pictures)
    mask = pictures[0].mask
    assert isinstance(mask, Path)
    content, status = mask.read_bytes(), mask.stat()
    mask.write_bytes(b"x" * len(content))
    os.utime(mask, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert label_sets(pictures) == SETS  # it was not opened
    os.utime(mask, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(DataError, match=r"a\.png"):
        label_sets(pictures)
    mask.unlink()
    with pytest.raises(DataError, match=r"a\.png: no such file"):
        label_sets(pictures)


@pytest.mark.parametrize("spoil", [lambda kept: b"", lambda kept: b"spoilt", lambda kept: kept[:-1]])
def test_spoilt_memory_is_made_anew(pictures: MaskedPictures, cache: Path, spoil: Callable[[bytes], bytes]) -> None:
    label_sets(pictures)
    (kept,) = (cache / "label-sets").iterdir()
    good = kept.read_bytes()
    kept.write_bytes(spoil(good))
    assert label_sets(pictures) == SETS
    assert kept.read_bytes() == good


def test_another_legend_is_another_question(pictures: MaskedPictures) -> None:
    label_sets(pictures)
    with pytest.raises(DataError, match=r"b\.png: holds the value 2, which no class has"):
        label_sets(pictures.relabelled(Legend({0: "background", 1: "pond"})))


def test_masks_in_memory_leave_nothing(pictures: MaskedPictures, cache: Path) -> None:
    held = [Picture(one.name, one.source, mask=np.array([[0, 2]], np.uint8)) for one in pictures]
    assert label_sets(MaskedPictures(held, LEGEND)) == [{0, 2}] * 3
    assert not cache.exists()


def test_a_cache_that_cannot_be_written(pictures: MaskedPictures, cache: Path) -> None:
    cache.mkdir()
    (cache / "label-sets").write_text("a file where the folder should be")
    assert label_sets(pictures) == SETS
