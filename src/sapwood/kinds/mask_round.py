"""A round of pictures with masks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sapwood.data.mask_views import MaskViews
from sapwood.feeds import Feed, MaskFeed, owned
from sapwood.functional.segmentation import confusion_matrix, mean_iou
from sapwood.kinds.base import Round, digest_of
from sapwood.network import Network
from sapwood.settings import TrainingConfig
from sapwood.world.sums import summed


@dataclass(frozen=True)
class MaskRound(Round):
    """A round of pictures with masks.

    Attributes:
        table: uint8 [256], value in a mask to channel, 255 for ignored.
        hidden: classes most of whose pixels the patch grid cannot show, with the share that it can.
        absent: classes of the classes file that are not known, and that no mask holds a pixel of.
    """

    table: np.ndarray
    hidden: Mapping[str, float]
    absent: tuple[str, ...] = ()

    def manifest(self) -> list[dict[str, Any]]:
        """Hashes (of picture and mask, and of the picture alone) and split of each picture."""
        return [
            {"sha256": sha256, "picture": picture, "split": split}
            for split, store in (("train", self.train), ("validation", self.held))
            for sha256, picture in zip(store.sha256, store.picture_sha256, strict=True)
        ]

    def digest(self) -> str:
        """Over the manifest, and over what the values in the masks mean."""
        rows = [{"sha256": row["sha256"], "split": row["split"]} for row in self.manifest()]
        return f"{digest_of(rows)}-{self.table.tobytes().hex()}"

    def feed(self, config: TrainingConfig, *, stays: bool) -> Feed:
        """Training views."""
        views = MaskViews(self._pixels, config.augment, self.table, seed=self.task.seed, task=self.task.index)
        return MaskFeed(self.train, views, config.batch_size, config.workers, stays=stays)

    def plain_feed(self, config: TrainingConfig, *, held: bool, stays: bool = False) -> Feed:
        """Whole validation pictures, or those to train on; ``stays`` as in ``ViewFeed``."""
        views = MaskViews(self._pixels, False, self.table)
        return MaskFeed(self.held if held else self.train, views, config.batch_size, config.workers, stays=stays)

    @torch.no_grad()
    def validate(self, network: Network, feed: Feed) -> float | None:
        """Mean IoU of the round's own classes; what is drawn as another old class counts as background, as labelled."""
        classes = self.task.known
        own = torch.zeros(classes, dtype=torch.int64)
        own[list(self.task.annotated)] = torch.tensor(self.task.annotated)
        counts = torch.zeros(classes, classes, dtype=torch.int64)
        for batch in owned(feed):
            drawn = network.head.decision(feed.forward(network, None, batch)[0].logits).argmax(1).cpu()
            counts += confusion_matrix(own[drawn], batch.targets, classes)
        share = mean_iou(summed(counts), classes=self.task.annotated)
        return None if math.isnan(share) else share

    def remarks(self) -> list[str]:
        """Classes without a pixel, and what the patch grid cannot show."""
        said = [f"no mask holds a pixel of {', '.join(map(repr, self.absent[:5]))}: not learned"] if self.absent else []
        if not self.hidden:
            return said
        listed = ", ".join(f"{name} ({share:.0%})" for name, share in self.hidden.items())
        return [
            *said,
            f"at {self.size[0]}x{self.size[1]} px the patches are too coarse for small regions; of these classes only "  # type: ignore[index]
            f"so much can be seen: {listed}. A larger --image-size shows more",
        ]

    @property
    def _pixels(self) -> tuple[int, int]:
        assert not isinstance(self.size, int)
        return self.size[0], self.size[1]
