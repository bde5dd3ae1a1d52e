"""Colours of classes, palette masks, overlays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sapwood.data.legend import Legend
from sapwood.data.masks import decode_mask
from sapwood.data.palette import overlay, palette, write_mask
from sapwood.data.pictures import Picture

VALUES = np.arange(256, dtype=np.uint8).reshape(8, 32)


def test_the_colours_of_pascal_voc() -> None:
    """The published colours of its 20 classes and of void."""
    colours = palette()
    assert len(colours) == len(set(colours)) == 256
    assert colours[0] == (0, 0, 0)
    assert colours[1] == (128, 0, 0)  # aeroplane
    assert colours[7] == (128, 128, 128)  # car
    assert colours[8] == (64, 0, 0)  # cat
    assert colours[15] == (192, 128, 128)  # person
    assert colours[20] == (0, 64, 128)  # tvmonitor
    assert colours[255] == (224, 224, 192)
    assert palette(5) == colours[:5]


def test_a_written_mask_is_read_again(tmp_path: Path) -> None:
    write_mask(tmp_path / "mask.png", VALUES)
    image = Image.open(tmp_path / "mask.png")
    assert (image.mode, image.size) == ("P", (32, 8))
    assert np.array_equal(np.asarray(image), VALUES)
    assert [tuple(colour) for colour in np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()] == palette()
    legend = Legend({value: str(value) for value in range(255)})
    assert np.array_equal(decode_mask(Picture("p", b"", mask=tmp_path / "mask.png"), legend, size=(8, 32)), VALUES)
    write_mask(tmp_path / "small.png", VALUES.T[:2, ::-1])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "small.png")), VALUES.T[:2, ::-1])


def test_only_values_are_written(tmp_path: Path) -> None:
    for values in (VALUES.astype(np.int64), VALUES[None]):
        with pytest.raises(ValueError, match="must be uint8"):
            write_mask(tmp_path / "mask.png", values)


def test_overlay() -> None:
    rgb = np.full((1, 4, 3), 100, np.uint8)
    mask = np.array([[0, 1, 2, 255]], np.uint8)
    assert overlay(rgb, mask).tolist() == [[[100, 100, 100], [114, 50, 50], [50, 114, 50], [100, 100, 100]]]
    assert overlay(rgb, mask, 1.0)[0, 1].tolist() == [128, 0, 0]
    assert np.array_equal(overlay(rgb, mask, 0.0), rgb)
    assert (rgb == 100).all()
    with pytest.raises(ValueError, match="differ in size"):
        overlay(rgb, mask.T)
