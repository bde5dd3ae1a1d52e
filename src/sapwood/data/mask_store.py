"""Decoded pictures and masks at working size: each file is read and decoded once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL.Image import Resampling

from sapwood.data.buffer import PixelBuffer
from sapwood.data.decode import DEFAULT_PIXEL_LIMIT, decode_with_sha256
from sapwood.data.legend import IGNORE, Legend
from sapwood.data.masks import MaskedPictures, mask_name, read_mask, read_saliency
from sapwood.data.names import shown
from sapwood.data.pictures import Picture
from sapwood.data.store import BUDGET, each, name_and_reason, refuse_bad
from sapwood.data.transforms import resized
from sapwood.errors import DataError

_CHANNELS = 3  # a picture has three bytes where a mask and a saliency map have one


class MaskStore:
    """Decoded pictures with their masks, for training; evaluation reads masks at their own resolution.

    If one picture comes with a saliency map, all must.

    Args:
        pictures: what to decode.
        shorter: shorter side in pixels to which larger pictures are reduced (antialiased); masks and maps go along
            (nearest).
        skip_bad: leave out pictures that, or whose masks, cannot be read or do not fit (they are listed in ``bad``)
            instead of raising.
        pixel_limit: see ``decode``.
        workers: decoding threads; 0 takes one per processor, at most eight.
        progress: called with (done, total) after each picture, from the calling thread.
        budget: bytes kept in memory; what is beyond goes to a temporary file.
        least: pixels that each side of a picture must have.

    Attributes:
        pictures: the good ones.
        bad: (name of the picture or mask, reason) of the others.
        sha256: of each good picture's, mask's and saliency map's bytes together.
        picture_sha256: of each good picture's bytes alone.
        counts: int64 [N, 256], pixels of each value at the mask's own resolution.

    Raises:
        DataError: something cannot be read or does not fit and ``skip_bad`` is off, or nothing good is left.
    """

    def __init__(
        self,
        pictures: MaskedPictures,
        shorter: int,
        *,
        skip_bad: bool = False,
        pixel_limit: int = DEFAULT_PIXEL_LIMIT,
        workers: int = 0,
        progress: Callable[[int, int], None] | None = None,
        budget: int = BUDGET,
        least: int = 1,
    ) -> None:
        good: list[int] = []
        bad: list[tuple[str, str]] = []
        digests: list[str] = []
        own_digests: list[str] = []
        counts: list[np.ndarray] = []
        salient = any(picture.saliency is not None for picture in pictures)
        part = budget // (_CHANNELS + 1 + salient)
        pixels, masks = PixelBuffer(part * _CHANNELS), PixelBuffer(part)
        maps = PixelBuffer(part if salient else 0)
        reading = partial(
            _read, legend=pictures.legend, shorter=shorter, pixel_limit=pixel_limit, least=least, salient=salient
        )
        try:
            for index, outcome in enumerate(each(reading, pictures, workers)):
                if isinstance(outcome, DataError):
                    picture = pictures[index]
                    bad.append(name_and_reason(outcome, picture.name, mask_name(picture), str(picture.saliency)))
                else:
                    pixels.append(outcome.pixels)
                    masks.append(outcome.mask)
                    if outcome.saliency is not None:
                        maps.append(outcome.saliency)
                    counts.append(outcome.counts)
                    digests.append(outcome.sha256)
                    own_digests.append(outcome.picture_sha256)
                    good.append(index)
                if progress is not None:
                    progress(index + 1, len(pictures))
        except BaseException:
            pixels.abandon()
            masks.abandon()
            maps.abandon()
            raise
        for buffer in (pixels, masks, maps):
            buffer.close()
        self.pictures: MaskedPictures = pictures.subset(good)
        self.bad = tuple(bad)
        self.sha256 = tuple(digests)
        self.picture_sha256 = tuple(own_digests)
        self.counts = np.array(counts, np.int64).reshape(-1, 256)
        self._pixels, self._masks, self._maps = pixels, masks, maps if salient else None
        self._rows: list[int] = list(range(len(good)))
        what = "pictures, masks or saliency maps" if salient else "pictures or masks"
        refuse_bad(pictures, self.pictures, self.bad, skip_bad, f"{what} cannot be used")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> np.ndarray:
        """The picture, uint8 [H, W, 3]."""
        return self._pixels[self._rows[index]]

    def mask(self, index: int) -> np.ndarray:
        """The values of its mask at the picture's size here, uint8 [H, W]."""
        return self._masks[self._rows[index]]

    def saliency(self, index: int) -> np.ndarray | None:
        """Its saliency map at the picture's size here, uint8 [H, W]; None where pictures come without."""
        return None if self._maps is None else self._maps[self._rows[index]]

    def subset(self, indices: Iterable[int]) -> MaskStore:
        """A store of the pictures at ``indices``, in that order, over the same memory."""
        chosen = [range(len(self))[int(index)] for index in indices]
        part = object.__new__(MaskStore)
        part.pictures = self.pictures.subset(chosen)
        part.bad = ()
        part.sha256 = tuple(self.sha256[index] for index in chosen)
        part.picture_sha256 = tuple(self.picture_sha256[index] for index in chosen)
        part.counts = self.counts[chosen]
        part._pixels, part._masks, part._maps = self._pixels, self._masks, self._maps
        part._rows = [self._rows[index] for index in chosen]
        return part


def visible_share(store: MaskStore, legend: Legend, grid_cells: tuple[int, int]) -> dict[str, float]:
    """How much of each class a grid can show at all: the share of its pixels in cells where it has the majority.

    A head with one prediction a cell shows a cell as one class, at best the one that has most of its pixels; classes
    whose regions are smaller than a cell have a low share whatever is learned. Ignored pixels count nowhere.

    Args:
        store: decoded masks.
        legend: what their values mean; background is a rival, not a class.
        grid_cells: (rows, columns) of the grid laid over each picture.

    Returns:
        Share of each class that has any pixel, in the order of the legend; a tie counts for both.
    """
    classes = legend.classes
    table = legend.lookup({name: channel for channel, name in enumerate(classes, 1)})
    channels, cells = len(classes) + 1, grid_cells[0] * grid_cells[1]
    total, shown = np.zeros(channels, np.int64), np.zeros(channels, np.int64)
    for index in range(len(store)):
        target = table[store.mask(index)]
        rows, columns = (np.arange(side) * parts // side for side, parts in zip(target.shape, grid_cells, strict=True))
        cell = rows[:, None] * grid_cells[1] + columns
        valid = target != IGNORE
        found = np.bincount(cell[valid] * channels + target[valid], minlength=cells * channels).reshape(cells, channels)
        total += found.sum(0)
        shown += np.where(found == found.max(1, keepdims=True), found, 0).sum(0)
    return {name: float(shown[row] / total[row]) for row, name in enumerate(classes, 1) if total[row]}


class _Read(NamedTuple):
    pixels: np.ndarray
    mask: np.ndarray
    saliency: np.ndarray | None
    counts: np.ndarray
    sha256: str
    picture_sha256: str


def check_side(name: str, size: tuple[int, ...], least: int) -> None:
    """Raise a DataError for a picture of (H, W) pixels with a side below ``least``, the side of a patch."""
    if min(size) < least:
        raise DataError(
            f"{shown(name)}: is {size[1]} x {size[0]} pixels, smaller than a patch ({least} x {least}); enlarge it, or "
            "leave it out"
        )


def _read(picture: Picture, *, legend: Legend, shorter: int, pixel_limit: int, least: int, salient: bool) -> _Read:
    decoded = decode_with_sha256(picture, shorter=shorter, pixel_limit=pixel_limit)
    check_side(picture.name, decoded.size, least)
    mask = read_mask(picture, legend, size=decoded.size)
    saliency = read_saliency(picture, size=decoded.size) if salient else None
    height, width = decoded.pixels.shape[:2]
    parts = [decoded.sha256, mask.sha256, *([saliency.sha256] if saliency is not None else [])]
    return _Read(
        decoded.pixels,
        _reduced(mask.values, (height, width)),
        None if saliency is None else _reduced(saliency.values, (height, width)),
        mask.counts,
        hashlib.sha256(" ".join(parts).encode()).hexdigest(),
        decoded.sha256,
    )


def _reduced(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return values if values.shape == size else resized(values, size, method=Resampling.NEAREST)
