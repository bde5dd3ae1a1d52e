"""Views of a picture: what training sees, what prediction sees, and the scale the backbone wants."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from PIL.Image import Resampling, Transpose
from torch import Tensor

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

_ATTEMPTS = 10


def view_key(seed: int, task: int, epoch: int, sha256: str) -> int:
    """Key of one random view, 64 bits: the same picture in the same epoch looks the same in any worker or order."""
    digest = hashlib.blake2b(f"{seed}/{task}/{epoch}/{sha256}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


@dataclass(frozen=True)
class Crop:
    """Which part of a picture is shown, and whether mirrored."""

    box: Box
    mirror: bool

    def of(self, pixels: np.ndarray, size: tuple[int, int], method: Resampling = Resampling.BICUBIC) -> np.ndarray:
        """The part of uint8 [H, W] or [H, W, 3], resized to ``size`` (H, W)."""
        return resized(pixels, size, self.box, method, mirror=self.mirror)


def random_crop(width: int, height: int, key: int, scale: tuple[float, float], ratio: tuple[float, float]) -> Crop:
    """Random crop and horizontal flip (Szegedy et al. 2015), a function of its arguments only; see ``train_view``."""
    numbers = random.Random(key)
    mirror = numbers.random() < 0.5
    return Crop(_random_box(width, height, scale, ratio, numbers), mirror)


def train_view(
    picture: np.ndarray,
    size: int,
    key: int,
    *,
    scale: tuple[float, float] = (0.5, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: bool = True,
) -> np.ndarray:
    """Random resized crop and horizontal flip (Szegedy et al. 2015), a function of its arguments only.

    Args:
        picture: uint8 [H, W, 3].
        size: side of the view in pixels; the crop is resized to it (bicubic, antialiased).
        key: of the random numbers, see ``view_key``.
        scale: smallest and largest area of the crop, as a share of the picture's.
        ratio: smallest and largest width / height of the crop.
        flip: mirror half of the views.

    Returns:
        uint8 [size, size, 3].
    """
    crop = random_crop(picture.shape[1], picture.shape[0], key, scale, ratio)
    return (crop if flip else replace(crop, mirror=False)).of(picture, (size, size))


def eval_view(picture: np.ndarray, size: int) -> np.ndarray:
    """Shorter side resized to ``size`` (bicubic, antialiased), then the central square.

    Args:
        picture: uint8 [H, W, 3].
        size: side of the view in pixels.

    Returns:
        uint8 [size, size, 3].
    """
    height, width = picture.shape[:2]
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    return resized(picture, (size, size), (left, top, left + side, top + side))


def normalise(
    images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Pixels as the backbone was trained on: ``(pixel / 255 - mean) / std``, computed in float32.

    Args:
        images: uint8 [B, H, W, 3].
        mean: one per channel, on the scale [0, 1].
        std: one per channel, on the scale [0, 1].
        dtype: of the result.

    Returns:
        [B, 3, H, W], contiguous.
    """
    shape = (1, 3, 1, 1)
    centre = torch.as_tensor(mean, dtype=torch.float32, device=images.device).reshape(shape)
    spread = torch.as_tensor(std, dtype=torch.float32, device=images.device).reshape(shape)
    scaled = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return scaled.div_(255).sub_(centre).div_(spread).to(dtype)


def resized(
    pixels: np.ndarray,
    size: tuple[int, int],
    box: Box | None = None,
    method: Resampling = Resampling.BICUBIC,
    *,
    mirror: bool = False,
) -> np.ndarray:
    """The part ``box`` (default: all) of uint8 [H, W] or [H, W, 3], resized to ``size`` (H, W), perhaps mirrored."""
    image = Image.fromarray(pixels).resize((size[1], size[0]), method, box=box)
    return np.array(image.transpose(Transpose.FLIP_LEFT_RIGHT) if mirror else image)


def _random_box(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], numbers: random.Random
) -> Box:
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_ATTEMPTS):
        area = width * height * (scale[0] + (scale[1] - scale[0]) * numbers.random())
        aspect = math.exp(low + (high - low) * numbers.random())
        wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            left = int(numbers.random() * (width - wide + 1))
            top = int(numbers.random() * (height - tall + 1))
            return (left, top, left + wide, top + tall)
    # A long, thin picture: the central crop that keeps within the allowed ratios.
    wide = min(width, max(1, round(height * ratio[1])))
    tall = min(height, max(1, round(width / ratio[0])))
    margin_x, margin_y = (width - wide) / 2, (height - tall) / 2
    return (margin_x, margin_y, margin_x + wide, margin_y + tall)
