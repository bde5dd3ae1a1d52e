"""Pictures come out as a person would see them; broken ones are named."""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from sapwood.data.decode import content_sha256, decode, decode_with_sha256
from sapwood.data.pictures import Picture, as_picture
from sapwood.errors import DataError


def quarters() -> np.ndarray:
    """Four flat colours, 48 x 32: every turn and mirror image of it is different."""
    picture = np.empty((32, 48, 3), np.uint8)
    picture[:16, :24], picture[:16, 24:] = (200, 30, 30), (30, 200, 30)
    picture[16:, :24], picture[16:, 24:] = (30, 30, 200), (220, 220, 40)
    return picture


def saved(path: Path, image: Image.Image, **options: object) -> Picture:
    image.save(path, **options)
    return Picture(str(path), path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_every_exif_orientation_is_turned_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = Image.fromarray(quarters())
    # What a camera would have stored: the inverse of the turn that the tag asks for.
    inverse = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = upright if inverse is None else upright.transpose(inverse)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {".jpg": {"quality": 95, "subsampling": 0}, ".webp": {"lossless": True}}.get(suffix, {})
    picture = saved(tmp_path / f"a{suffix}", stored, exif=exif, **options)
    difference = np.abs(decode(picture).astype(int) - quarters())
    assert difference.mean() < 3
    reduced = decode(picture, shorter=8)
    assert reduced.shape == (8, 12, 3)
    assert np.abs(reduced[1, 1].astype(int) - (200, 30, 30)).max() < 12
    assert np.abs(reduced[6, 10].astype(int) - (220, 220, 40)).max() < 12


def test_a_pillow_image_is_turned_too_and_stays_as_it_was(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.jpg"
    Image.fromarray(quarters()).save(path, exif=exif)
    with Image.open(path) as image:
        small = decode(as_picture(image), shorter=4)
        pixels = decode(as_picture(image))
        assert image.size == (48, 32)
        assert small.shape == (6, 4, 3)
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(pixels, expected)


def test_the_sum_of_a_pillow_image_is_that_of_what_is_seen() -> None:
    red, blue = Image.new("P", (2, 2)), Image.new("P", (2, 2))
    red.putpalette([255, 0, 0])
    blue.putpalette([0, 0, 255])
    clear, turned = red.copy(), Image.new("RGB", (2, 2))
    clear.info["transparency"] = 0
    turned.getexif()[0x0112] = 6
    plain = [red, blue, clear, Image.new("RGB", (2, 2)), turned]
    assert len({content_sha256(as_picture(image)) for image in plain}) == len(plain)
    assert content_sha256(as_picture(red.copy())) == content_sha256(as_picture(red))


def test_greyscale_becomes_three_equal_channels(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = decode(saved(tmp_path / "a.png", Image.fromarray(grey)))
    assert np.array_equal(pixels, np.repeat(grey[:, :, None], 3, axis=2))


def test_black_and_white(tmp_path: Path) -> None:
    bits = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    assert decode(saved(tmp_path / "a.png", bits))[:, :, 1].tolist() == [[0, 255], [255, 0]]


def test_palette_with_transparency_lies_over_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 0, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = decode(saved(tmp_path / "a.png", image, transparency=0))
        each = decode(saved(tmp_path / "b.png", image, transparency=bytes([255, 128, 0])))
    assert one.tolist() == [[[255, 255, 255], [200, 0, 0], [0, 0, 0]]]
    assert np.abs(each.astype(int) - [[[10, 20, 30], [227, 127, 127], [255, 255, 255]]]).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_lies_over_white(tmp_path: Path, mode: str) -> None:
    dark = {"RGBA": (0, 0, 0), "LA": (0,)}[mode]
    image = Image.new(mode, (3, 1))
    for x, alpha in enumerate((0, 51, 255)):
        image.putpixel((x, 0), (*dark, alpha))
    pixels = decode(saved(tmp_path / "a.png", image))
    assert pixels[0, :, 0].tolist() == [255, 204, 0]


def test_rgb_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[[9, 9, 9], [8, 8, 8]]], np.uint8))
    assert decode(saved(tmp_path / "a.png", image, transparency=(9, 9, 9)))[0, :, 0].tolist() == [255, 8]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    path = tmp_path / f"a{suffix}"
    if suffix == ".pgm":
        path.write_bytes(b"P5 16 16 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    pixels = decode(Picture("a", path))
    assert np.array_equal(pixels[:, :, 0].ravel(), np.arange(256))
    assert np.array_equal(pixels[:, :, 0], pixels[:, :, 2])


def test_pixels_without_a_defined_white_are_refused(tmp_path: Path) -> None:
    for name, values in (("f", np.ones((2, 2), np.float32)), ("i", np.full((2, 2), 70000, np.int32))):
        with pytest.raises(DataError, match=rf"{name}\.tif: .* no defined white; save it with 8 or 16 bits"):
            decode(saved(tmp_path / f"{name}.tif", Image.fromarray(values)))


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk(tmp_path: Path, suffix: str) -> None:
    pixels = decode(saved(tmp_path / f"a{suffix}", Image.fromarray(quarters()).convert("CMYK")), shorter=32)
    assert np.abs(pixels[4, 4].astype(int) - (200, 30, 30)).max() < 10
    assert np.abs(pixels[28, 40].astype(int) - (220, 220, 40)).max() < 10


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    picture = saved(tmp_path / "a.gif", red, save_all=True, append_images=[blue])
    assert decode(picture)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("size", "shorter", "shape"),
    [((400, 300), 75, (75, 100)), ((300, 400), 75, (100, 75)), ((20, 30), 75, (30, 20)), ((75, 75), 75, (75, 75))],
)
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_larger_pictures_are_reduced_smaller_ones_left(
    tmp_path: Path, suffix: str, size: tuple[int, int], shorter: int, shape: tuple[int, int]
) -> None:
    picture = saved(tmp_path / f"a{suffix}", Image.new("RGB", size, (10, 120, 230)))
    pixels = decode(picture, shorter=shorter)
    assert pixels.shape == (*shape, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - (10, 120, 230)).max() <= 3


def test_reduction_is_antialiased(tmp_path: Path) -> None:
    board = np.indices((256, 256)).sum(0) % 2 * 255  # without a filter this gives 0 or 255, never their mean
    picture = saved(tmp_path / "a.png", Image.fromarray(board.astype(np.uint8)))
    assert np.abs(decode(picture, shorter=30).astype(int) - 127).max() < 12


def test_the_sum_is_that_of_the_file(tmp_path: Path) -> None:
    picture = saved(tmp_path / "a.png", Image.new("RGB", (4, 4)))
    expected = hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    assert content_sha256(picture) == decode_with_sha256(picture)[1] == expected
    wide, high = (Picture("a", np.zeros(shape, np.uint8)) for shape in ((2, 8, 3), (8, 2, 3)))
    assert content_sha256(wide) != content_sha256(high)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_a_truncated_picture_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"cut{suffix}: "):
        decode(Picture(str(path), path))


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "zero.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("these are not pixels\n" * 50)
    (tmp_path / "ghost.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    for name, reason in {
        "zero.jpg": r"empty \(0 bytes\)",
        "text.jpg": "is not a picture",
        "ghost.jpg": "is not a picture",
        "folder.jpg": "is a folder",
        "link.jpg": "link leads nowhere",
        "none.jpg": "no such file",
    }.items():
        with pytest.raises(DataError, match=f"^{name}: .*{reason}") as caught:
            decode(Picture(name, tmp_path / name))
        assert "\n" not in str(caught.value)


def test_heic_without_its_reader_names_the_extra() -> None:
    try:
        import pillow_heif  # noqa: F401
    except ImportError:
        with pytest.raises(DataError, match=r"sapwood\[heif\]"):
            decode(Picture("a.heic", struct.pack(">I", 24) + b"ftypheic" + bytes(200)))
    else:
        pytest.skip("pillow-heif is installed here")


def test_the_pixel_limit_is_checked_before_decoding(tmp_path: Path) -> None:
    picture = saved(tmp_path / "big.png", Image.new("RGB", (40, 30)))
    assert decode(picture, pixel_limit=1200).shape == (30, 40, 3)
    with pytest.raises(DataError, match=r"big\.png: 40 x 30 pixels is above the limit of 1,199"):
        decode(picture, pixel_limit=1199)


@pytest.mark.parametrize("side", [11_000, 200_000])
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=r"^bomb\.png: .*limit of 89,478,485"):
            decode(Picture("bomb.png", bomb + chunk(b"IEND", b"")))


def test_arrays_are_checked_and_reduced() -> None:
    assert decode(Picture("a", np.zeros((5, 4), np.uint8))).shape == (5, 4, 3)
    assert decode(Picture("a", quarters()), shorter=16).shape == (16, 24, 3)
    clear = np.zeros((2, 2, 4), np.uint8)
    assert (decode(Picture("a", clear)) == 255).all()
    source = quarters()
    decode(Picture("a", source))[:] = 0
    assert np.array_equal(source, quarters())
    for wrong in (
        np.zeros((4, 4, 3)),
        np.zeros((3, 4, 4, 3), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ):
        with pytest.raises(DataError, match="array must be uint8"):
            decode(Picture("a", wrong))


def test_broken_exif_costs_no_picture(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(quarters()).save(buffer, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow says that the EXIF data are broken
        assert decode(Picture("a.jpg", buffer.getvalue())).shape == (32, 48, 3)
