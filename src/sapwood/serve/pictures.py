"""Pictures from strangers: looked at before they are decoded, by few decoders, and never too many at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from sapwood.backbones.base import height_width
from sapwood.data.decode import decode, open_image
from sapwood.data.mask_views import tiles
from sapwood.data.pictures import Picture
from sapwood.errors import DataError
from sapwood.kinds.classification import HEADROOM
from sapwood.serve.problems import Problem

# MPO is what many phones call their JPEG. Rarer formats have rarer decoders, which nobody here needs.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_AT_A_TIME = 4
_LONGEST = 16.0
"""Times the view that a narrow picture may be long where it is drawn whole; attention grows with the square of it."""


class Gate:
    """Bounds the decoded pixels of all requests together.

    Args:
        pixels: most of one picture; so many of the largest may be held at a time.
    """

    def __init__(self, pixels: int) -> None:
        self._most = _AT_A_TIME * pixels
        self._held = 0
        self._lock = threading.Lock()

    @contextmanager
    def room(self) -> Iterator[Room]:
        """For one request, until it is answered."""
        room = Room(self)
        try:
            yield room
        finally:
            room.leave()

    def change(self, pixels: int) -> bool:
        """Take or give back pixels; False if there is no room for them."""
        with self._lock:
            if pixels > 0 and self._held + pixels > self._most:
                return False
            self._held += pixels
            return True


class Room:
    """The pixels of one request."""

    def __init__(self, gate: Gate) -> None:
        self._gate, self._held, self._left = gate, 0, False
        self._lock = threading.Lock()

    def take(self, pixels: int) -> None:
        """Hold so many more.

        Raises:
            Problem: 429, other requests hold them.
        """
        with self._lock:
            if self._left or not self._gate.change(pixels):
                raise Problem(
                    429,
                    "Too many pixels at a time",
                    "other requests fill the memory; send fewer or smaller pictures, or try again in a moment",
                    headers={"Retry-After": "1"},
                )
            self._held += pixels

    def leave(self) -> None:
        """Give all of them back."""
        with self._lock:
            self._gate.change(-self._held)
            self._held, self._left = 0, True


def checked_pixels(name: str, content: bytes, record: Mapping[str, Any], most: int, room: Room) -> np.ndarray:
    """Pixels uint8 [H, W, 3] of a picture, as large as predictions need them.

    Args:
        name: for messages.
        content: of the file.
        record: of a version of the state.
        most: pixels that the picture may have.
        room: where masks, for which pictures are kept whole, find theirs.

    Raises:
        Problem: 413 too many pixels, by the header alone; 415 another format; 422 broken; 429 no room.
    """
    width, height = check_picture(name, content, most)
    picture = Picture(name, content)
    size = record["image_size"]
    try:
        if record["kind"] != "segmentation":
            return decode(picture, shorter=round(size * HEADROOM), pixel_limit=most)
        room.take(width * height)
        return decode(picture, pixel_limit=most)
    except DataError as error:
        raise Problem(422, "Broken picture", str(error)) from error
    except MemoryError as error:
        raise Problem(413, "Too many pixels", f"{name}: there is no memory for it; make it smaller") from error


def pass_count(pictures: Sequence[np.ndarray], record: Mapping[str, Any], tile: bool, most: int) -> int:
    """Views of the state's size that go through the network for pictures uint8 [H, W, 3]; one for each that is named.

    Args:
        pictures: of one request.
        record: of a version of the state.
        tile: see ``Question``.
        most: views that a request may take.

    Raises:
        Problem: 413 a picture is too narrow for its length to be drawn whole, or there are too many views.
    """
    if record["kind"] != "segmentation":
        return len(pictures)
    view = height_width(record["image_size"])
    found = 0
    for number, pixels in enumerate(pictures):
        height, width = pixels.shape[:2]
        if tile and height >= view[0] and width >= view[1]:
            found += len(tiles((height, width), view))
            continue
        aspect = height * view[1] / (width * view[0])
        stretch = max(aspect, 1 / aspect)
        if stretch > _LONGEST:
            raise Problem(
                413,
                "Picture too narrow",
                f"picture {number}: {width} x {height} pixels cannot be drawn at once; cut it into pieces",
            )
        found += int(stretch)
    if found > most:
        size = f"{view[1]} x {view[0]}"
        raise Problem(
            413,
            "Too many views",
            f"these pictures take {found:,} views of {size} pixels, and {most:,} may be asked for at a time; "
            "send fewer or smaller ones" + (", or leave tile out" if tile else ""),
        )
    return found


def check_picture(name: str, content: bytes, most: int) -> tuple[int, int]:
    """(width, height) of a picture, by its header alone.

    Raises:
        Problem: 413 too many pixels; 415 not a picture of a format that is read here.
    """
    known = ", ".join(format for format in FORMATS if format != "MPO")
    too_many = Problem(413, "Too many pixels", f"{name}: may have {most:,} pixels at most; make it smaller")
    try:
        image = open_image(content, name) if content else None
    except DataError as error:
        raise Problem(415, "Not a picture", f"{name}: is not a picture that is read here ({known})") from error
    except Image.DecompressionBombError as error:
        raise too_many from error
    except Exception as error:  # parsers raise whatever they meet in a broken header
        raise Problem(422, "Broken picture", f"{name}: its header cannot be read") from error
    if image is None:
        raise Problem(422, "Broken picture", f"{name}: the file is empty")
    if image.format not in FORMATS:
        raise Problem(415, "Not a picture", f"{name}: {image.format} is not read here; send {known}")
    if image.width * image.height > most:
        raise too_many
    return image.size
