"""Passes over a round's pictures for a head that is fitted on pooled features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from sapwood.backbones.base import height_width
from sapwood.data.rows import FileRows, blocks
from sapwood.data.store import PictureStore
from sapwood.feeds import FeatureFeed, Feed
from sapwood.functional.statistics import drift_map
from sapwood.heads.base import Features, PooledHead
from sapwood.heads.reading import Joins
from sapwood.heads.settings import PooledConfig
from sapwood.kinds.classification import PictureRound
from sapwood.network import Network
from sapwood.operations import Tally, counted
from sapwood.passing import Keeping, Rows, run_pass, stored_features
from sapwood.progress import Progress
from sapwood.settings import TrainingConfig
from sapwood.world import size as processes

_SMALLEST_BATCH = 32
# Of a head that training has fitted only what is known is asked of features: a part of the pictures answers that.
_LOOKED_AT, _LEAST_LOOKED_AT = 0.25, 32


class PooledFit:
    """Features of a round before and after its training, each computed at most once, and the head's fit on them."""

    def __init__(
        self,
        network: Network,
        head: PooledHead,
        data: PictureRound,
        config: TrainingConfig,
        rows: Rows,
        progress: Progress,
        check: Callable[[], None],
        tally: Tally,
    ) -> None:
        self.network, self.head, self.data, self.config, self.tally = network, head, data, config, tally
        self.options: dict[str, Any] = {
            "image_size": data.size,
            "batch_size": max(config.batch_size, _SMALLEST_BATCH),
            "workers": config.workers,
            "progress": progress,
            "check": check,
        }
        self.keeping = Keeping(rows, config.checkpoint_seconds)
        self.before: Tensor | None = None
        self.features: Tensor | None = None
        self.held: Tensor | None = None
        self.looked_at = range(len(data.train)) if head.wants_features else _part(data.train_targets)

    def remember(self) -> None:
        """Keep the features as they are before the adapter moves them, if statistics shall follow."""
        follow = self.head.drift == "linear" or self.head.known.own
        if follow and not self.network.adapter.keeps_features:
            store = self.data.train.subset(self.looked_at)
            self.before = self._features(store, "features before")

    def compute(self) -> tuple[Tensor, Tensor]:
        """Features [n, d] of training and of validation pictures."""
        if self.features is None or self.held is None:
            self.features = self._features(self.data.train, "features")
            self.held = self._features(self.data.held, "validation features")
        return self.features, self.held

    def _features(self, store: PictureStore, what: str) -> Tensor:
        if len(store):
            # By a blank picture: of a pass that goes on after a kill, what was computed before it counts too.
            with torch.no_grad(), counted() as operations:
                self.network.tokens(torch.zeros(1, *height_width(self.data.size), 3, dtype=torch.uint8))
            self.tally.gmacs += operations.gmacs * len(store) / processes()
        found = stored_features(self.network, store, what=what, keeping=self.keeping, **self.options)
        return cast("Tensor", found)  # read like one, wherever it lies

    def of_all(self) -> Tensor | None:
        """Features [n, d] of all pictures, training before validation; None if not computed, or too many for memory."""
        if (
            self.features is None
            or self.held is None
            or any(isinstance(x, FileRows) for x in (self.features, self.held))
        ):
            return None
        return torch.cat([self.features, self.held])

    def feeds(self) -> tuple[Feed, Feed]:
        """Training and validation features as batches: only the head is evaluated."""
        features, held = self.compute()
        task, size = self.data.task, self.config.batch_size
        balanced = self.config.balance == "auto"
        return (
            FeatureFeed(features, self.data.train_targets, size, task.seed, task.index, balanced=balanced),
            FeatureFeed(held, self.data.held_targets, size, task.seed, task.index),
        )

    def finish(self) -> tuple[dict[str, Any], float | None]:
        """Fit the head and choose its temperature: facts for the log, accuracy on the validation pictures."""
        head, data = self.head, self.data
        stays = self.features is not None
        if stays or head.wants_features:
            features, held = self.compute()
            train = Features(features, data.train_targets)
        else:
            features = self._features(data.train.subset(self.looked_at), "features")
            held = self.held = self._features(data.held, "validation features")
            train = Features(features, data.train_targets[self.looked_at])
        validation = Features(held, data.held_targets) if len(data.held) else None
        if self.before is not None:
            drift = drift_map(self.before, features, _drift_strength(head.config))
            head.known.carry(drift)
            if head.drift == "linear":
                head.carry(drift)
        head.calibrated, head.balanced = False, self.config.balance == "auto"
        facts: dict[str, Any] = {}
        accuracy: float | None = None
        # What the adapter makes of its logits is nothing that a head can choose its temperature by.
        later = head if head.calibrates and self.network.adapter.calibrates and isinstance(head, Joins) else None
        before = head.temperature, head.told
        if head.wants_features:
            facts = head.fit(train, validation if later is None else None, data.task.generator("fit"))
            accuracy = facts.get("validation_accuracy")
        if later is not None:
            (head.temperature, head.told), head.calibrated = before, False
        if validation is not None and (later is not None or not head.calibrates):
            logits = self._held_logits()
            head.calibrate_temperature(logits, data.held_targets)
            accuracy = int((logits.argmax(1) == data.held_targets).sum()) / len(logits)
        if later is not None:
            facts |= {"temperature": head.temperature, "validation_accuracy": accuracy}
            if validation is not None:
                later.join(validation)
        facts |= head.learn_known(train, validation, stays=stays)
        return facts, accuracy

    @torch.no_grad()
    def _held_logits(self) -> Tensor:
        if self.held is not None and not self.network.adapter.calibrates:
            device = self.network.device
            return torch.cat([self.head.logits(rows.to(device)).cpu() for rows in blocks(self.held)])
        return run_pass(self.data.held, self.network.predict, what="validation", **self.options)


def _drift_strength(config: Any) -> float:
    """A head of another package has what settings it likes."""
    return float(getattr(config, "drift_strength", PooledConfig.drift_strength))


def _part(targets: Tensor) -> list[int]:
    """Indices of a quarter of the pictures, 32 at least, of each class its share.

    >>> _part(torch.tensor([0, 1] * 200)).count(0), len(_part(torch.arange(1000) % 10)), len(_part(torch.zeros(9)))
    (1, 250, 9)
    """
    count = min(len(targets), max(_LEAST_LOOKED_AT, round(_LOOKED_AT * len(targets))))
    places = torch.linspace(0, len(targets) - 1, count).round().long()
    return sorted(targets.argsort(stable=True)[places].tolist())
