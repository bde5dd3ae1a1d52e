"""Passes over a round's pictures for a head that is fitted on pooled features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sapwood.feeds import FeatureFeed, Feed, extract, passes
from sapwood.functional.statistics import drift_map
from sapwood.heads.base import Features, PooledHead
from sapwood.kinds.classification import PictureRound
from sapwood.network import Network
from sapwood.progress import Progress
from sapwood.settings import TrainingConfig

_SMALLEST_BATCH = 32


class PooledFit:
    """Features of a round before and after its training, each computed at most once, and the head's fit on them."""

    def __init__(
        self,
        network: Network,
        head: PooledHead,
        data: PictureRound,
        config: TrainingConfig,
        progress: Progress,
        check: Callable[[], None],
    ) -> None:
        self.network, self.head, self.data, self.config = network, head, data, config
        self.options: dict[str, Any] = {
            "image_size": data.size,
            "batch_size": max(config.batch_size, _SMALLEST_BATCH),
            "workers": config.workers,
            "progress": progress,
            "check": check,
        }
        self.before: Tensor | None = None
        self.features: Tensor | None = None
        self.held: Tensor | None = None

    def remember(self) -> None:
        """Keep the features as they are before the adapter moves them, if the head's statistics shall follow."""
        if self.head.drift == "linear" and not self.network.adapter.keeps_features:
            self.before = extract(self.network, self.data.train, what="features before", **self.options)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Features [n, d] of training and of validation pictures."""
        if self.features is None or self.held is None:
            self.features = extract(self.network, self.data.train, what="features", **self.options)
            self.held = extract(self.network, self.data.held, what="validation features", **self.options)
        return self.features, self.held

    def feeds(self) -> tuple[Feed, Feed]:
        """Training and validation features as batches: only the head is evaluated."""
        features, held = self.compute()
        task, size = self.data.task, self.config.batch_size
        return (
            FeatureFeed(features, self.data.train_targets, size, task.seed, task.index),
            FeatureFeed(held, self.data.held_targets, size, task.seed, task.index),
        )

    def finish(self) -> tuple[dict[str, Any], float | None]:
        """Fit the head and choose its temperature: facts for the log, accuracy on the validation pictures."""
        head, data = self.head, self.data
        facts: dict[str, Any] = {}
        accuracy: float | None = None
        if head.wants_features:
            features, held = self.compute()
            if self.before is not None:
                head.carry(drift_map(self.before, features, head.config.drift_strength))
            validation = Features(held, data.held_targets) if len(data.held) else None
            facts = head.fit(Features(features, data.train_targets), validation, data.task.generator("fit"))
            accuracy = facts.get("validation_accuracy")
        if len(data.held) and not head.calibrates:
            logits = self._held_logits()
            head.calibrate_temperature(logits, data.held_targets)
            accuracy = head.right_share(logits, data.held_targets)
        return facts, accuracy

    @torch.no_grad()
    def _held_logits(self) -> Tensor:
        if self.held is not None and not self.network.adapter.calibrates:
            return self.head.logits(self.held.to(self.network.device)).cpu()
        return passes(self.network, self.data.held, [self.network.predict], what="validation", **self.options)[0]
