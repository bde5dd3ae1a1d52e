"""Which classes the pictures of a round show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sapwood.kinds import Round
from sapwood.kinds.classification import PictureRound
from sapwood.kinds.mask_round import MaskRound


@dataclass(frozen=True)
class ChannelsShown:
    """Which channels each picture of a round shows, those to train on first.

    Attributes:
        shown: the class of each picture, int64 [n]; of masks, which show several, bool [n, K].
        channels: K, classes after the round.
    """

    shown: Tensor
    channels: int

    def counts(self) -> list[int]:
        """How many pictures show each channel."""
        of_each = self.shown.sum(0) if self.shown.dim() == 2 else torch.bincount(self.shown, minlength=self.channels)
        found: list[int] = of_each.tolist()
        return found

    def of(self, channel: int) -> Tensor:
        """Which pictures show it: bool [n]."""
        return self.shown[:, channel] if self.shown.dim() == 2 else self.shown == channel


def channels_shown(round_: Round) -> ChannelsShown:
    """What the pictures of a round show, as small as it may be kept."""
    channels = len(round_.names)
    if isinstance(round_, PictureRound):
        return ChannelsShown(torch.cat([round_.train_targets, round_.held_targets]), channels)
    shows = torch.zeros(len(round_), channels, dtype=torch.bool)
    if isinstance(round_, MaskRound):
        present = torch.from_numpy(np.concatenate([round_.train.counts, round_.held.counts]) > 0)
        for value, channel in enumerate(round_.table.tolist()):
            if channel < channels:
                shows[:, channel] |= present[:, value]
    return ChannelsShown(shows, channels)
