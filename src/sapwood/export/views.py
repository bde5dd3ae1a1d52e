"""The pictures an export is checked on: the user's, or ones that are made up for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sapwood.data.decode import decode
from sapwood.data.given import read_test_data
from sapwood.data.masks import decode_mask, read_mask_split, read_masks
from sapwood.data.pictures import Pictures
from sapwood.data.sources import has_splits
from sapwood.data.transforms import eval_view, resized
from sapwood.errors import DataError
from sapwood.export.options import Labelled

CHECKED = 8
"""Pictures that outputs are compared on."""

_MEASURED = 1000  # labelled pictures looked at, evenly spread: what a dtype costs is no matter of the last digit
HEADROOM = 1.25
"""Pictures are decoded so much above the view, as for prediction."""


def made_up(size: tuple[int, int], count: int = CHECKED) -> Tensor:
    """Pictures uint8 [count, H, W, 3] with edges and with the spectrum of natural ones; always the same.

    >>> made_up((28, 42), 2).shape
    torch.Size([2, 28, 42, 3])
    """
    random = np.random.default_rng(0)
    height, width = size
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    fall = 1 / np.maximum(np.hypot(rows, columns), 1 / max(size))
    found = []
    for _ in range(count):
        noise = np.fft.fft2(random.normal(size=(3, height, width))) * fall
        waves = np.fft.ifft2(noise).real
        waves = waves / waves.std() * 45 + random.uniform(70, 180, (3, 1, 1))
        top, left = random.integers(0, height // 2), random.integers(0, width // 2)
        waves[:, top : top + height // 3, left : left + width // 3] = random.uniform(0, 255, (3, 1, 1))
        found.append(waves.clip(0, 255).round().astype(np.uint8).transpose(1, 2, 0))
    return torch.from_numpy(np.stack(found))


def labelled_views(data: Any, kind: str, classes: Sequence[str], size: tuple[int, int]) -> Labelled:
    """Plain views of labelled pictures (the test part where the data come in parts), at most a thousand.

    Raises:
        DataError: a class is not known; for masks, none of them is.
    """
    if kind == "segmentation":
        return _masked(data, classes, size)
    pictures = _spread(read_test_data(data))
    position = {name: number for number, name in enumerate(classes)}
    unknown = sorted({str(label) for label in pictures.labels} - position.keys())
    if unknown:
        raise DataError(f"{_called(data)}: class {unknown[0]!r} is not among those exported: {', '.join(classes)}")
    side = size[0]
    views = [eval_view(decode(picture, shorter=round(side * HEADROOM)), side) for picture in pictures]
    targets = torch.tensor([position[str(label)] for label in pictures.labels])
    return Labelled(torch.from_numpy(np.stack(views)), targets, _called(data))


def _masked(data: Any, classes: Sequence[str], size: tuple[int, int]) -> Labelled:
    split = isinstance(data, str | Path) and has_splits(data)
    pictures = read_mask_split(data, "test") if split else read_masks(data)
    legend = pictures.legend
    if not set(legend.classes) & set(classes):
        raise DataError(f"{_called(data)}: none of its classes is among those exported: {', '.join(classes)}")
    lookup = legend.lookup({name: number for number, name in enumerate(classes)})
    views, targets = [], []
    for picture in _spread(pictures):
        pixels = decode(picture)
        mask = decode_mask(picture, legend, size=pixels.shape[:2])
        views.append(resized(pixels, size))
        targets.append(torch.from_numpy(lookup[mask].astype(np.int64)))
    return Labelled(torch.from_numpy(np.stack(views)), _at_view(targets, size), _called(data))


def _called(data: Any) -> str:
    return str(data) if isinstance(data, str | Path) else "the pictures given"


def _at_view(masks: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    resize = torch.nn.functional.interpolate
    return torch.cat([resize(mask[None, None].float(), size, mode="nearest-exact")[0].long() for mask in masks])


def _spread(pictures: Pictures) -> Pictures:
    if len(pictures) <= _MEASURED:
        return pictures
    return pictures.subset(int(index) for index in np.linspace(0, len(pictures) - 1, _MEASURED))
