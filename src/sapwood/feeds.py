"""What a round trains on and passes over: pictures, or features that were computed once."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from sapwood.backbones.base import Tokens
from sapwood.data.loader import Batch, Views, balanced_order, batches, epoch_order
from sapwood.data.mask_store import MaskStore
from sapwood.data.mask_views import MaskBatch, MaskViews, mask_batches
from sapwood.data.store import PictureStore
from sapwood.network import Teacher, outputs_of
from sapwood.objectives.base import Outputs


class Feed(Protocol):
    """Batches of a round, and what networks make of one; a batch has ``targets``."""

    def __len__(self) -> int:
        """Batches an epoch."""

    def batches(self, epoch: int, start: int, size: int | None = None) -> Iterable[Any]:
        """The batches of an epoch from the ``start``-th on, of ``size`` pictures instead of the usual if given."""

    def forward(self, model: Any, teacher: Teacher | None, batch: Any) -> tuple[Outputs, Outputs | None]:
        """What the network in training says of a batch, and what its teacher says of the same views."""


class ViewFeed(ABC):
    """Views through the whole network, fresh ones in every epoch.

    Args:
        count: pictures an epoch.
        batch_size: pictures a batch.
        stays: the round leaves the backbone as it is, so that network and teacher share one forward of it.
    """

    def __init__(self, count: int, batch_size: int, *, stays: bool = False) -> None:
        self.count, self.batch_size, self.stays = count, batch_size, stays

    def __len__(self) -> int:
        """Batches an epoch."""
        return math.ceil(self.count / self.batch_size)

    @abstractmethod
    def batches(self, epoch: int, start: int, size: int | None = None) -> Iterable[Any]:
        """The batches of an epoch from the ``start``-th on, of ``size`` pictures instead of the usual if given."""

    def forward(self, model: Any, teacher: Teacher | None, batch: Any) -> tuple[Outputs, Outputs | None]:
        """What the network in training says of a batch, and what its teacher says of the same views."""
        if not self.stays:
            # The teacher first: without a graph it leaves no memory behind when the student's is built.
            told = teacher(batch.images) if teacher is not None else None
            return model(batch.images), told
        with torch.no_grad():
            tokens, _ = model.tokens(batch.images, model.watched)
        size = batch.images.shape[1:3]
        told = teacher.from_tokens(tokens, size) if teacher is not None else None
        return outputs_of(model.head, tokens, size, model.watched), told


class PictureFeed(ViewFeed):
    """Pictures with one class each; ``balanced`` shows all classes equally often."""

    def __init__(
        self,
        store: PictureStore,
        targets: Tensor,
        views: Views,
        batch_size: int,
        workers: int,
        *,
        stays: bool = False,
        balanced: bool = False,
    ) -> None:
        super().__init__(len(store), batch_size, stays=stays)
        self.store, self.targets, self.views, self.workers = store, targets, views, workers
        self.balanced = balanced

    def batches(self, epoch: int, start: int, size: int | None = None) -> Iterable[Batch]:
        """The batches of an epoch from the ``start``-th on, of ``size`` pictures instead of the usual if given."""
        order = _order(self.targets, self.views.seed, self.views.task, epoch, self.balanced)
        return batches(
            self.store,
            self.targets,
            replace(self.views, epoch=epoch),
            batch_size=size or self.batch_size,
            order=order.tolist(),
            start=start,
            workers=self.workers,
        )


class MaskFeed(ViewFeed):
    """Pictures with a mask each."""

    def __init__(
        self, store: MaskStore, views: MaskViews, batch_size: int, workers: int, *, stays: bool = False
    ) -> None:
        super().__init__(len(store), batch_size, stays=stays)
        self.store, self.views, self.workers = store, views, workers

    def forward(self, model: Any, teacher: Teacher | None, batch: MaskBatch) -> tuple[Outputs, Outputs | None]:
        """What the network in training says of a batch, and what its teacher says of the same views.

        Saliency that came with the pictures stands for that of the network's own attention.
        """
        if batch.saliency is None or "saliency" not in model.watched:
            return super().forward(model, teacher, batch)
        with model.watching(model.watched - {"saliency"}):
            outputs, told = super().forward(model, teacher, batch)
        return replace(outputs, saliency=batch.saliency.to(outputs.logits.device).float()), told

    def batches(self, epoch: int, start: int, size: int | None = None) -> Iterable[MaskBatch]:
        """The batches of an epoch from the ``start``-th on, of ``size`` pictures instead of the usual if given."""
        order = epoch_order(len(self.store), self.views.seed, self.views.task, epoch)
        return mask_batches(
            self.store,
            replace(self.views, epoch=epoch),
            batch_size=size or self.batch_size,
            order=order.tolist(),
            start=start,
            workers=self.workers,
        )


class FeatureBatch(NamedTuple):
    """Features [B, d] and targets [B]."""

    features: Tensor
    targets: Tensor


class FeatureFeed:
    """Features computed once, for rounds that leave the backbone as it is: only the head is evaluated."""

    def __init__(
        self, features: Tensor, targets: Tensor, batch_size: int, seed: int, task: int, *, balanced: bool = False
    ) -> None:
        self.features, self.targets = features, targets
        self.batch_size, self.seed, self.task, self.balanced = batch_size, seed, task, balanced

    def __len__(self) -> int:
        """Batches an epoch."""
        return math.ceil(len(self.features) / self.batch_size)

    def batches(self, epoch: int, start: int, size: int | None = None) -> Iterator[FeatureBatch]:
        """The batches of an epoch from the ``start``-th on, of ``size`` pictures instead of the usual if given."""
        places = _order(self.targets, self.seed, self.task, epoch, self.balanced)
        order = torch.from_numpy(places) % max(len(self.targets), 1)
        for chosen in order.split(size or self.batch_size)[start:]:
            yield FeatureBatch(self.features[chosen], self.targets[chosen])

    def forward(self, model: Any, teacher: Teacher | None, batch: FeatureBatch) -> tuple[Outputs, Outputs | None]:
        """What head and teacher say of the same features."""
        tokens = as_tokens(batch.features.to(model.device))
        told = teacher.from_tokens(tokens, ()) if teacher is not None else None
        return outputs_of(model.head, tokens, (), model.watched), told


def _order(targets: Tensor, seed: int, task: int, epoch: int, balanced: bool) -> np.ndarray:
    if not balanced:
        return epoch_order(len(targets), seed, task, epoch)
    return balanced_order(targets.numpy(), seed, task, epoch)


def as_tokens(features: Tensor) -> Tokens:
    """Pooled features [B, d] as tokens without patches."""
    return Tokens(features, features.new_empty(len(features), 0, features.shape[1]), (0, 0))
