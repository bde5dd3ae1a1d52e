"""Decoded pictures and masks at working size: each file is read and decoded once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from PIL.Image import Resampling

from sapwood.data.decode import DEFAULT_PIXEL_LIMIT, decode_with_sha256
from sapwood.data.kept import SHA256_BYTES, KeptPictures, Look, Share, refuse_bad
from sapwood.data.legend import IGNORE, Legend
from sapwood.data.masks import MaskedPictures, mask_name, read_mask, read_saliency
from sapwood.data.names import shown
from sapwood.data.pictures import Picture
from sapwood.data.reading import each
from sapwood.data.store import BUDGET
from sapwood.data.transforms import resized
from sapwood.errors import DataError


class MaskStore(KeptPictures[MaskedPictures]):
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
        budget, limit, share: as of ``PictureStore``, of pictures with all that belongs to them.
        least: pixels that each side of a picture must have.

    Attributes:
        pictures: the good ones.
        bad: (name of the picture or mask, reason) of the others.
        sha256: of each good picture's, mask's and saliency map's bytes together.
        anew: how many are decoded at every look.

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
        limit: int | None = None,
        share: Share | None = None,
        least: int = 1,
    ) -> None:
        salient = any(picture.saliency is not None for picture in pictures)
        super().__init__(
            pictures,
            partial(
                _look, legend=pictures.legend, shorter=shorter, pixel_limit=pixel_limit, least=least, salient=salient
            ),
            names=lambda picture: (picture.name, mask_name(picture), str(picture.saliency)),
            workers=workers,
            progress=progress,
            budget=budget,
            limit=limit,
            share=share,
        )
        what = "pictures, masks or saliency maps" if salient else "pictures or masks"
        refuse_bad(pictures, self.pictures, self.bad, skip_bad, f"{what} cannot be used")

    def __getitem__(self, index: int) -> np.ndarray:
        """The picture, uint8 [H, W, 3]."""
        return self._arrays(index)[0]

    def mask(self, index: int) -> np.ndarray:
        """The values of its mask at the picture's size here, uint8 [H, W]."""
        return self._arrays(index)[1]

    def masks(self) -> Iterator[np.ndarray]:
        """All masks in order."""
        for found in each(self.mask, range(len(self)), 0 if self.anew else 1):
            if isinstance(found, DataError):
                raise found
            yield found

    def saliency(self, index: int) -> np.ndarray | None:
        """Its saliency map at the picture's size here, uint8 [H, W]; None where pictures come without."""
        arrays = self._arrays(index)
        return arrays[2] if len(arrays) > 2 else None

    @property
    def picture_sha256(self) -> tuple[str, ...]:
        """Of each good picture's bytes alone."""
        return tuple(row.tobytes().hex() for row in self._facts[:, :SHA256_BYTES])

    @property
    def counts(self) -> np.ndarray:
        """int64 [N, 256], pixels of each value at the mask's own resolution."""
        return np.ascontiguousarray(self._facts[:, SHA256_BYTES:]).view(np.int64)


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
    for mask in store.masks():
        target = table[mask]
        rows, columns = (np.arange(side) * parts // side for side, parts in zip(target.shape, grid_cells, strict=True))
        cell = rows[:, None] * grid_cells[1] + columns
        valid = target != IGNORE
        found = np.bincount(cell[valid] * channels + target[valid], minlength=cells * channels).reshape(cells, channels)
        total += found.sum(0)
        shown += np.where(found == found.max(1, keepdims=True), found, 0).sum(0)
    return {name: float(shown[row] / total[row]) for row, name in enumerate(classes, 1) if total[row]}


def check_side(name: str, size: tuple[int, ...], least: int) -> None:
    """Raise a DataError for a picture of (H, W) pixels with a side below ``least``, the side of a patch."""
    if min(size) < least:
        raise DataError(
            f"{shown(name)}: is {size[1]} x {size[0]} pixels, smaller than a patch ({least} x {least}); enlarge it, or "
            "leave it out"
        )


def _look(picture: Picture, *, legend: Legend, shorter: int, pixel_limit: int, least: int, salient: bool) -> Look:
    decoded = decode_with_sha256(picture, shorter=shorter, pixel_limit=pixel_limit)
    check_side(picture.name, decoded.size, least)
    mask = read_mask(picture, legend, size=decoded.size)
    size = decoded.pixels.shape[:2]
    arrays, digests = [decoded.pixels, _reduced(mask.values, size)], [decoded.sha256, mask.sha256]
    if salient:
        saliency = read_saliency(picture, size=decoded.size)
        arrays.append(_reduced(saliency.values, size))
        digests.append(saliency.sha256)
    whole = hashlib.sha256(" ".join(digests).encode()).digest()
    return Look(tuple(arrays), whole + bytes.fromhex(decoded.sha256) + mask.counts.astype(np.int64).tobytes())


def _reduced(values: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    return values if values.shape == size else resized(values, (size[0], size[1]), method=Resampling.NEAREST)
