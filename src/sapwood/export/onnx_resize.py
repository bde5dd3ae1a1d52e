"""The plain view as tensor operations: what Pillow does to a picture, so that a graph can do it too."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sapwood.data.transforms import normalise


class Preprocess(nn.Module):
    """Pictures uint8 [B, H, W, 3] of any size -> what the network takes, float32 [B, 3, h, w].

    Pillow resizes by two weighted sums, first across and then down, and rounds to whole levels after each. Both sums
    are products with a matrix whose entries follow from the picture's size alone. Pillow's weights are fixed-point
    numbers of 22 bits, these are float32: a value that lies on the edge of two levels may fall to the other. From 13.0
    on Pillow takes pictures that are about twice as tall as wide, or taller, down first and then across; of
    these, in pure noise, a quarter of the values differ, by up to ten levels.

    Args:
        size: (h, w) of the view in pixels.
        square: the central square is taken; else the whole picture is stretched.
        mean, std: per channel, on pixels in 0..1.
    """

    def __init__(self, size: tuple[int, int], square: bool, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.size, self.square = size, square
        self.mean, self.std = mean, std

    def forward(self, images: Tensor) -> Tensor:
        """Normalised views."""
        return normalise(self.views(images).permute(0, 2, 3, 1), self.mean, self.std)

    def views(self, images: Tensor) -> Tensor:
        """Views [B, 3, h, w] before normalisation: whole levels 0..255 as float32."""
        rows, columns = (torch.arange(images.shape[side], dtype=torch.float32) + 0.5 for side in (1, 2))
        height, width = rows[-1] + 0.5, columns[-1] + 0.5
        down, across = height, width
        if self.square:
            down = across = torch.minimum(height, width)
        levels = images.permute(0, 3, 1, 2).float()
        levels = _whole(levels @ resampling(columns, (width - across) / 2, across, self.size[1]).T)
        return _whole(resampling(rows, (height - down) / 2, down, self.size[0]) @ levels)


def resampling(centres: Tensor, start: Tensor, length: Tensor, count: int) -> Tensor:
    """Weights [count, n] of n pixels in ``count`` new ones: cubic (a = -1/2), antialiased, as Pillow's BICUBIC.

    Args:
        centres: of the pixels, [n]: 0.5, 1.5, ...
        start, length: scalars; the part of the axis that is resized.

    >>> resampling(torch.tensor([0.5, 1.5]), torch.tensor(0.0), torch.tensor(2.0), 1)
    tensor([[0.5000, 0.5000]])
    """
    scale = length / count
    wanted = start + (torch.arange(count, dtype=torch.float32) + 0.5) * scale
    away = ((centres[None] - wanted[:, None]) / scale.clamp(min=1)).abs()
    near = (1.5 * away - 2.5) * away * away + 1
    far = ((-0.5 * away + 2.5) * away - 4) * away + 2
    weights = torch.where(away < 1, near, torch.where(away < 2, far, torch.zeros_like(away)))
    return weights / weights.sum(1, keepdim=True)


def _whole(levels: Tensor) -> Tensor:
    return (levels + 0.5).floor().clamp(0, 255)
