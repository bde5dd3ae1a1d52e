"""Views of pictures with masks: what training sees, and the sizes at which whole pictures are looked at."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from PIL.Image import Resampling
from torch import Tensor

from sapwood.data.loader import Batches, decoding_threads, grouped
from sapwood.data.mask_store import MaskStore
from sapwood.data.transforms import random_crop, resized, view_key
from sapwood.errors import ConfigError
from sapwood.world import WHOLE, Part

_SCALE = (0.5, 1.0)
_JITTER = (3 / 4, 4 / 3)


class MaskBatch(NamedTuple):
    """Views, target channels (255 is ignored), where in the store each picture lies, and saliency if it came along."""

    images: Tensor  # uint8 [B, H, W, 3]
    targets: Tensor  # uint8 [B, H, W]
    indices: Tensor  # int64 [B]
    saliency: Tensor | None = None  # uint8 [B, H, W]


@dataclass(frozen=True, eq=False)
class MaskViews:
    """How pictures with masks are shown.

    Attributes:
        size: (H, W) of a view in pixels.
        augment: show the random crop and flip of (seed, task, epoch, picture): half to all of the picture's area, the
            view's aspect times 3/4 to 4/3, picture bicubic and antialiased, mask and saliency nearest, all by the same
            box. Else the whole picture, stretched to ``size``.
        lookup: uint8 [256], value in the mask to target channel (``Legend.lookup``).
        seed: of the random views.
        task: of the random views.
        epoch: of the random views.
    """

    size: tuple[int, int]
    augment: bool
    lookup: np.ndarray
    seed: int = 0
    task: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise ConfigError(f"size of a view must be >= 1 by 1, got {self.size[0]} by {self.size[1]}")
        if self.lookup.shape != (256,) or self.lookup.dtype != np.uint8:
            raise ValueError(f"lookup must be uint8 [256], got {self.lookup.dtype} {list(self.lookup.shape)}")

    def of(self, store: MaskStore, index: int) -> tuple[np.ndarray, np.ndarray]:
        """View of one picture, uint8 [H, W, 3], and its target channels, uint8 [H, W]."""
        shown = self._shown(store, index)
        return shown(store[index], Resampling.BICUBIC), self.lookup.take(shown(store.mask(index), Resampling.NEAREST))

    def saliency_of(self, store: MaskStore, index: int) -> np.ndarray | None:
        """The same view of the picture's saliency map, uint8 [H, W]; None where pictures come without."""
        saliency = store.saliency(index)
        return None if saliency is None else self._shown(store, index)(saliency, Resampling.NEAREST)

    def _shown(self, store: MaskStore, index: int) -> Callable[[np.ndarray, Resampling], np.ndarray]:
        """What makes the view of pixels that lie as the picture's do."""
        if not self.augment:
            return lambda pixels, method: resized(pixels, self.size, method=method)
        height, width = store.size(index)
        aspect = self.size[1] / self.size[0]
        key = view_key(self.seed, self.task, self.epoch, store.sha256[index])
        crop = random_crop(width, height, key, _SCALE, (_JITTER[0] * aspect, _JITTER[1] * aspect))
        return lambda pixels, method: crop.of(pixels, self.size, method)


def mask_batches(
    store: MaskStore,
    views: MaskViews,
    *,
    batch_size: int,
    order: Sequence[int] | np.ndarray | None = None,
    start: int = 0,
    workers: int = 0,
    part: Part = WHOLE,
) -> Batches[MaskBatch]:
    """The pictures of ``store`` in batches; the last one may be short. What comes does not depend on ``workers``.

    Args:
        store: decoded pictures and masks.
        views: how they are shown.
        batch_size: pictures in a batch.
        order: indices into the store, in the order wanted (``epoch_order``); by default all, as they lie.
        start: batches left out at the beginning; their pictures are not touched.
        workers: processes that prepare views; 0 does it in this one.
        part: the piece of every batch that comes.
    """
    order = range(len(store)) if order is None else order
    options = {"batch_size": batch_size, "start": start, "workers": workers, "threads": decoding_threads(store)}
    return grouped(partial(_batch, store, views), order, part=part, **options)


def _batch(store: MaskStore, views: MaskViews, indices: list[int]) -> MaskBatch:
    images = np.empty((len(indices), *views.size, 3), np.uint8)
    targets = np.empty((len(indices), *views.size), np.uint8)
    maps = []
    for row, index in enumerate(indices):
        images[row], targets[row] = views.of(store, index)
        if (saliency := views.saliency_of(store, index)) is not None:
            maps.append(saliency)
    return MaskBatch(
        torch.from_numpy(images),
        torch.from_numpy(targets),
        torch.tensor(indices, dtype=torch.int64),
        torch.from_numpy(np.stack(maps)) if maps else None,
    )


def fitting_size(picture_hw: tuple[int, int], view_hw: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Size (H, W) at which a whole picture is evaluated.

    The picture keeps its aspect and is scaled so that it just covers the view, then each side is rounded to the
    nearest ``multiple`` (the backbone's stride), at least one.

    >>> fitting_size((180, 240), (168, 224), 14), fitting_size((100, 400), (168, 224), 14)
    ((168, 224), (168, 672))
    """
    scale = max(view / side for view, side in zip(view_hw, picture_hw, strict=True))
    height, width = (max(1, math.floor(side * scale / multiple + 0.5)) * multiple for side in picture_hw)
    return height, width


class Tile(NamedTuple):
    """A piece of a picture, and the part of it that is kept."""

    top: int
    left: int
    keep: tuple[int, int, int, int]  # top, left, bottom, right, in pixels of the picture


def tiles(picture_hw: tuple[int, int], tile_hw: tuple[int, int], overlap: float = 0.25) -> list[Tile]:
    """Tiles that cover a picture, evenly spread, neighbours overlapping by at least ``overlap`` of a tile.

    The kept parts cover each pixel once: the border between two tiles is the middle of their overlap. Along a side
    that is shorter than a tile there is one tile, which reaches beyond the picture.

    >>> tiles((10, 16), (10, 10), 0.25)
    [Tile(top=0, left=0, keep=(0, 0, 10, 8)), Tile(top=0, left=6, keep=(0, 8, 10, 16))]
    """
    if not 0 <= overlap < 1:
        raise ConfigError(f"overlap of tiles must be in [0, 1), got {overlap}")
    rows, columns = (_spread(side, tile, overlap) for side, tile in zip(picture_hw, tile_hw, strict=True))
    return [
        Tile(top, left, (upper, leftmost, lower, rightmost))
        for top, upper, lower in rows
        for left, leftmost, rightmost in columns
    ]


def _spread(side: int, tile: int, overlap: float) -> list[tuple[int, int, int]]:
    """Along one side: where each tile begins, and the first and last + 1 pixel that it keeps."""
    step = max(1, int(tile * (1 - overlap)))
    count = 1 + max(0, math.ceil((side - tile) / step))
    starts = [round(number * (side - tile) / (count - 1)) for number in range(count)] if count > 1 else [0]
    cuts = [0, *((first + tile + second) // 2 for first, second in pairwise(starts)), side]
    return [(start, first, last) for start, (first, last) in zip(starts, pairwise(cuts), strict=True)]
