"""From a picture's bytes to RGB pixels, the way a person would see it."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import threading
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from sapwood.data.names import shown
from sapwood.data.pictures import Picture
from sapwood.errors import DataError

DEFAULT_PIXEL_LIMIT = 89_478_485
"""Pixels beyond which a picture is refused before it is decoded: Pillow's own threshold (a quarter GiB of RGB)."""

# Formats with a firm signature and a decoder in the process: EPS would start Ghostscript, TGA accepts any bytes.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_DRAFT_GAP = 2  # JPEG's cheap reduction stops at twice the wanted size, the rest is antialiased
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_warnings_lock = threading.Lock()


class Decoded(NamedTuple):
    """What one read of a picture gives."""

    pixels: np.ndarray  # uint8 [H, W, 3]
    sha256: str
    size: tuple[int, int]  # (H, W) of the whole upright picture, before any reduction


def decode(picture: Picture, *, shorter: int | None = None, pixel_limit: int = DEFAULT_PIXEL_LIMIT) -> np.ndarray:
    """RGB pixels of a picture, turned upright.

    EXIF orientation is applied, transparency lies over white, 16-bit grey is scaled to 8 bits (never clipped),
    palettes, greyscale and CMYK become RGB; of an animation the first frame is taken.

    Args:
        picture: what to decode.
        shorter: the shorter side in pixels to which larger pictures are reduced (antialiased); smaller ones are
            never enlarged. None: full size.
        pixel_limit: width x height above which the picture is refused before decoding. Pillow itself refuses
            more than 2 x ``PIL.Image.MAX_IMAGE_PIXELS`` whatever the limit here.

    Returns:
        uint8 [H, W, 3].

    Raises:
        DataError: the file is missing, empty, truncated, too large, or not a picture; the message names it.
    """
    return decode_with_sha256(picture, shorter=shorter, pixel_limit=pixel_limit)[0]


def decode_with_sha256(
    picture: Picture, *, shorter: int | None = None, pixel_limit: int = DEFAULT_PIXEL_LIMIT
) -> Decoded:
    """``decode`` and ``content_sha256`` from one read of the file."""
    name, content = shown(picture.name), read_content(picture)
    try:
        image = open_image(content, name)
        if image.width * image.height > pixel_limit:
            raise DataError(
                f"{name}: {image.width} x {image.height} pixels is above the limit of {pixel_limit:,}; make it smaller"
            )
        if image is content:
            image = image.copy()  # the caller's own: JPEG's reduced decoding would shrink it
        pixels, size = _upright_rgb(image, shorter, name)
        return Decoded(pixels, _sha256(content), size)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: has more pixels than the limit of {pixel_limit:,}; make it smaller") from error
    except Exception as error:  # decoders raise whatever their C code or parser meets in a broken file
        reason = shown(error) or type(error).__name__
        raise DataError(f"{name}: cannot be decoded ({reason}); replace it or leave it out") from error


def upright_size(picture: Picture) -> tuple[int, int]:
    """(H, W) of a picture turned upright, from its header alone.

    Raises:
        DataError: the file is missing, empty, or not a picture.
    """
    image = open_image(read_content(picture), shown(picture.name))
    width, height = image.size
    return (width, height) if _orientation(image) in _SIDEWAYS else (height, width)


def content_sha256(picture: Picture) -> str:
    """sha256, as 64 hexadecimal digits, of the file's bytes; of pixels in memory with their type and shape."""
    return _sha256(read_content(picture))


def read_content(picture: Picture) -> bytes | np.ndarray | Image.Image:
    """The bytes of a picture's file, or what it holds in memory.

    Raises:
        DataError: the file is missing, unreadable or empty, or an array is not one of pixels.
    """
    source, name = picture.source, shown(picture.name)
    if isinstance(source, np.ndarray):
        colours = source.ndim == 2 or (source.ndim == 3 and source.shape[2] in (3, 4))
        if source.dtype != np.uint8 or not colours or 0 in source.shape:
            raise DataError(
                f"{name}: an array must be uint8 [H, W], [H, W, 3] or [H, W, 4], "
                f"got {source.dtype} {list(source.shape)}"
            )
        return source
    if isinstance(source, Image.Image):
        return source
    if not isinstance(source, bytes | os.PathLike) and not callable(source):
        kinds = "a path, bytes, a Pillow image or a uint8 array (sapwood.data.pictures.as_picture takes tensors too)"
        raise DataError(f"{name}: must be {kinds}, got {type(source).__name__}")
    try:
        if isinstance(source, bytes):
            content = source
        elif callable(source):
            content = source()
        elif source.is_dir():
            raise DataError(f"{name}: is a folder, not a picture")
        elif not source.is_file():
            kind = "link leads nowhere" if source.is_symlink() else "no such file"
            raise DataError(f"{name}: {kind}")
        else:
            content = source.read_bytes()
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror or shown(error)})") from error
    if not content:
        raise DataError(f"{name}: the file is empty (0 bytes); replace it or leave it out")
    return content


def _sha256(content: bytes | np.ndarray | Image.Image) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    if isinstance(content, Image.Image):
        header, pixels = f"{content.mode} {content.size}", content.tobytes()
        if content.palette is not None:
            header += f" {content.getpalette('RGBA')} {content.info.get('transparency')}"
        if (turn := _orientation(content)) != 1:
            header += f" {turn}"
    else:
        header, pixels = f"{content.dtype} {content.shape}", content.tobytes()
    return hashlib.sha256(header.encode() + pixels).hexdigest()


@functools.cache
def _formats() -> tuple[str, ...]:
    try:
        import pillow_heif

        pillow_heif.register_heif_opener()
    except (ImportError, OSError):  # OSError: installed, but its shared library does not load
        pass
    Image.init()
    return tuple(known for known in _FORMATS if known in Image.OPEN)


def open_image(content: bytes | np.ndarray | Image.Image, name: str) -> Image.Image:
    """A Pillow image of which only the header was read, if it comes from bytes.

    Raises:
        DataError: the bytes are not a picture.
    """
    if isinstance(content, Image.Image):
        return content
    if isinstance(content, np.ndarray):
        return Image.fromarray(np.ascontiguousarray(content))
    try:
        # Pillow warns where this library refuses; the filter list is the process's, hence the lock.
        with _warnings_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(content), formats=_formats())
    except UnidentifiedImageError as error:
        if content[4:8] == b"ftyp" and content[8:12] in _HEIF_BRANDS:
            raise DataError(f"{name}: is a HEIC picture; to read those: pip install 'sapwood[heif]'") from error
        raise DataError(
            f"{name}: is not a picture (known: {', '.join(_formats())}); replace it or leave it out"
        ) from error


def _upright_rgb(image: Image.Image, shorter: int | None, name: str) -> tuple[np.ndarray, tuple[int, int]]:
    width, height = whole = image.size
    if shorter is not None:
        image.draft(None, (_DRAFT_GAP * shorter, _DRAFT_GAP * shorter))  # does nothing unless it is a JPEG
    drafted = image.size != whole
    image.load()
    if not drafted:
        width, height = image.size
    orientation = _orientation(image)  # after load(): Pillow turns TIFF itself, and then says 1 here
    turn = _TURNS.get(orientation)
    rgb = _to_rgb(image, name)
    small = min(rgb.size)
    if shorter is not None and small > shorter:
        size = (max(1, round(rgb.width * shorter / small)), max(1, round(rgb.height * shorter / small)))
        rgb = rgb.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    if turn is not None:
        rgb = rgb.transpose(turn)
    return np.array(rgb, dtype=np.uint8), (width, height) if orientation in _SIDEWAYS else (height, width)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # broken metadata must not cost a good picture
        return 1


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise DataError(f"{name}: floating-point pixels have no defined white; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return _from_deep_grey(image, name)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _from_deep_grey(image: Image.Image, name: str) -> Image.Image:
    """Grey of more than 8 bits: white is the format's own (4095 for a 12-bit TIFF), else 65535."""
    values = np.asarray(image).astype(np.int64)
    white = 65535
    if tags := getattr(image, "tag_v2", None):
        white = 2 ** int(tags.get(258, (16,))[0]) - 1
        white = white if white in (1023, 4095, 16383) else 65535
    if values.min() < 0 or values.max() > white:
        raise DataError(f"{name}: 32-bit pixels have no defined white; save it with 8 or 16 bits")
    grey = ((values * 255 + white // 2) // white).astype(np.uint8)
    if isinstance(clear := image.info.get("transparency"), int):
        grey[values == clear] = 255
    return Image.fromarray(grey).convert("RGB")
