"""The values in a mask, and what is refused as one."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sapwood.data.legend import BACKGROUND, Legend
from sapwood.data.legend_file import parse_legend
from sapwood.data.masks import decode_mask, read_mask
from sapwood.data.pictures import Picture
from sapwood.errors import DataError

STREET = Legend({0: BACKGROUND, 1: "road", 2: "car"})
VALUES = np.array([[0, 1, 2], [2, 255, 1]], np.uint8)


def png(pixels: Image.Image | np.ndarray, **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def one(mask: Any) -> Picture:
    return Picture("street.jpg", b"unread", mask=mask)


def palette_png() -> Image.Image:
    image = Image.fromarray(VALUES)
    image.putpalette([200, 10, 30] * 256)
    return image


@pytest.mark.parametrize(
    "mask",
    [
        VALUES,
        png(VALUES),
        lambda: png(VALUES),
        png(palette_png()),
        png(np.dstack([VALUES, np.full_like(VALUES, 255)])),
    ],
    ids=["array", "grey", "fetched", "palette", "opaque alpha"],
)
def test_values_as_they_are(mask: Any) -> None:
    values = decode_mask(one(mask), STREET, size=(2, 3))
    assert values.dtype == np.uint8
    assert np.array_equal(values, VALUES)
    assert np.array_equal(decode_mask(one(mask), STREET, size=None), VALUES)


def test_one_bit_masks() -> None:
    assert decode_mask(one(png(VALUES == 1)), STREET, size=None).tolist() == [[0, 1, 0], [0, 0, 1]]


def test_counts_and_sums(tmp_path: Path) -> None:
    first = read_mask(one(png(VALUES)), STREET, size=None)
    assert first.counts.shape == (256,)
    assert {value: count for value, count in enumerate(first.counts.tolist()) if count} == {0: 1, 1: 2, 2: 2, 255: 1}
    (tmp_path / "mask.png").write_bytes(png(VALUES))
    assert read_mask(one(tmp_path / "mask.png"), STREET, size=None).sha256 == first.sha256
    assert read_mask(one(png(VALUES[::-1])), STREET, size=None).sha256 != first.sha256
    assert read_mask(one(VALUES), STREET, size=None).sha256 != read_mask(one(VALUES.T), STREET, size=None).sha256


def test_colours() -> None:
    legend = parse_legend({"#000000": "background", "#ff0000": "road", "#00ff10": "void"}, "here")
    rgb = np.array([[[0, 0, 0], [255, 0, 0]], [[0, 255, 16], [255, 0, 0]]], np.uint8)
    assert decode_mask(one(png(rgb)), legend, size=None).tolist() == [[0, 1], [2, 1]]
    rgb[0, 0] = 7
    with pytest.raises(DataError, match=r"mask of street.jpg: holds colours that no class has: #070707; add them"):
        decode_mask(one(png(rgb)), legend, size=None)
    with pytest.raises(DataError, match="is a colour picture, and no table"):
        decode_mask(one(png(rgb)), STREET, size=None)


def test_a_palette_means_indices_unless_the_legend_is_by_colour() -> None:
    """Indices 1, 0 with the palette red, black: by colour it is background first, by index it is road first."""
    image = Image.fromarray(np.array([[1, 0]], np.uint8))
    image.putpalette([255, 0, 0, 0, 0, 0])
    by_colour = parse_legend({"#000000": "background", "#ff0000": "road"}, "here")
    assert decode_mask(one(png(image)), by_colour, size=None).tolist() == [[0, 1]]
    assert decode_mask(one(png(image)), STREET, size=None).tolist() == [[1, 0]]
    with_palette = parse_legend({"classes": ["background", "road"], "palette": [[0, 0, 0], [255, 0, 0]]}, "here")
    assert decode_mask(one(png(image)), with_palette, size=None).tolist() == [[1, 0]]
    assert decode_mask(one(png(image.convert("RGB"))), with_palette, size=None).tolist() == [[0, 1]]


def deep_colour_png() -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" + bytes(6))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (None, "street.jpg: has no mask"),
        (b"", "mask of street.jpg: the file is empty"),
        (b"text", "mask of street.jpg: is not a picture"),
        (png(VALUES)[:50], "mask of street.jpg: cannot be decoded"),
        (VALUES.astype(np.int64), "must be uint8 [H, W], got int64 [2, 3]"),
        (np.zeros((2, 3, 3), np.uint8), "must be uint8 [H, W], got uint8 [2, 3, 3]"),
        (png(VALUES.astype(np.uint16)), "more than 8 bits a pixel; save the mask with 8 bits"),
        (deep_colour_png(), "more than 8 bits a pixel"),
        (np.array([[3, 0, 9, 9]], np.uint8), "holds the values 3, 9, which no class has (known: 0, 1, 2 and 255"),
        (png(np.array([[0, 7]], np.uint8)), "holds the value 7, which no class has"),
        (png(np.zeros((2, 2, 4), np.uint8)), "has transparent pixels"),
        (Image.fromarray(VALUES), "a mask in memory must be uint8 [H, W], got Image"),
        (torch.from_numpy(VALUES), "mask of street.jpg: must be a path, bytes, a Pillow image or a uint8 array"),
    ],
    ids=[
        "none",
        "empty",
        "text",
        "cut",
        "int64",
        "rgb",
        "16 bit",
        "16 bit rgb",
        "values",
        "value",
        "clear",
        "pillow",
        "tensor",
    ],
)
def test_bad_masks(mask: Any, expected: str) -> None:
    with pytest.raises(DataError) as caught:
        decode_mask(one(mask), STREET, size=None)
    assert expected in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_message_names_the_mask_s_file(tmp_path: Path) -> None:
    (tmp_path / "7.png").write_bytes(png(np.array([[0, 7]], np.uint8)))
    with pytest.raises(DataError) as caught:
        decode_mask(one(tmp_path / "7.png"), STREET, size=(1, 2))
    assert str(caught.value).startswith(f"{tmp_path / '7.png'}: holds the value 7")
    with pytest.raises(DataError, match=r"8\.png: no such file"):
        decode_mask(one(tmp_path / "8.png"), STREET, size=None)


@pytest.mark.parametrize("mask", [VALUES, png(VALUES)], ids=["array", "file"])
def test_another_size(mask: Any) -> None:
    with pytest.raises(DataError, match=r"mask of street.jpg: is 3 x 2 pixels, but its picture is 4 x 2; a mask must"):
        decode_mask(one(mask), STREET, size=(2, 4))
    with pytest.raises(DataError, match="is 2 x 3, once turned upright as its EXIF says"):
        decode_mask(one(mask), STREET, size=(3, 2))


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (30000, 30000, r"mask of street\.jpg: "),
        (10000, 9000, "more than 89,478,485 pixels"),
        (10000, 8000, "is 10000 x 8000 pixels, but its picture is 3 x 2"),
    ],
)
def test_huge_masks_are_not_decoded(width: int, height: int, expected: str) -> None:
    """The header alone is refused: there are no pixels behind it."""
    content = bytearray(deep_colour_png())
    content[16:26] = struct.pack(">IIBB", width, height, 8, 0)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    with pytest.raises(DataError, match=expected):
        decode_mask(one(bytes(content)), STREET, size=(2, 3))
