"""Weights that are in memory already, given to the next network instead of read again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from sapwood.backbones.base import Backbone, Size, height_width

Lend = Callable[[Mapping[str, Any], Size, torch.device, str], Backbone | None]
"""Of what a state records of its backbone, the size of its pictures, device and precision: the backbone, or None."""


class LentOnce:
    """Gives a backbone that was just opened to the first network that asks, if it works at that size.

    >>> from dataclasses import asdict
    >>> from sapwood.backbones import create_backbone
    >>> made = create_backbone("random:dinov2-tiny", 28)
    >>> lend = LentOnce(made)
    >>> [lend(asdict(made.info), 28, torch.device("cpu"), "fp32") is made for _ in range(2)]
    [True, False]
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone: Backbone | None = backbone

    def __call__(self, info: Mapping[str, Any], size: Size, device: torch.device, precision: str) -> Backbone | None:
        """The backbone; None after the first time, or where it is another one."""
        lent, self.backbone = self.backbone, None
        if lent is None or lent.info.sha256 != info["sha256"]:
            return None
        return lent if height_width(lent.info.image_size) == height_width(size) else None
