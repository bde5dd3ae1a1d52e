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
from sapwood.network import Teacher
from sapwood.objectives.base import Outputs
from sapwood.observing import outputs_of
from sapwood.world import WHOLE, Part, part


class Feed(Protocol):
    """Batches of a round, and what networks make of one; a batch has ``targets``."""

    count: int
    """Pictures an epoch."""
    batch_size: int

    def __len__(self) -> int:
        """Batches an epoch."""

    def batches(self, epoch: int, start: int, size: int | None = None, part: Part = WHOLE) -> Iterable[Any]:
        """The batches of an epoch from the ``start``-th on, ``size`` pictures instead of the usual, in part."""

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
    def batches(self, epoch: int, start: int, size: int | None = None, part: Part = WHOLE) -> Iterable[Any]:
        """The batches of an epoch from the ``start``-th on, ``size`` pictures instead of the usual, in part."""

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

    def batches(self, epoch: int, start: int, size: int | None = None, part: Part = WHOLE) -> Iterable[Batch]:
        """The batches of an epoch from the ``start``-th on, ``size`` pictures instead of the usual, in part."""
        return batches(
            self.store,
            self.targets,
            replace(self.views, epoch=epoch),
            batch_size=size or self.batch_size,
            order=self.order(epoch).tolist(),
            start=start,
            workers=self.workers,
            part=part,
        )

    def order(self, epoch: int) -> np.ndarray:
        """Places of an epoch; see ``balanced_order``."""
        return _order(self.targets, self.views.seed, self.views.task, epoch, self.balanced)


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

    def batches(self, epoch: int, start: int, size: int | None = None, part: Part = WHOLE) -> Iterable[MaskBatch]:
        """The batches of an epoch from the ``start``-th on, ``size`` pictures instead of the usual, in part."""
        order = epoch_order(len(self.store), self.views.seed, self.views.task, epoch)
        return mask_batches(
            self.store,
            replace(self.views, epoch=epoch),
            batch_size=size or self.batch_size,
            order=order.tolist(),
            start=start,
            workers=self.workers,
            part=part,
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
        self.features, self.targets, self.count = features, targets, len(features)
        self.batch_size, self.seed, self.task, self.balanced = batch_size, seed, task, balanced

    def __len__(self) -> int:
        """Batches an epoch."""
        return math.ceil(self.count / self.batch_size)

    def batches(self, epoch: int, start: int, size: int | None = None, part: Part = WHOLE) -> Iterator[FeatureBatch]:
        """The batches of an epoch from the ``start``-th on, ``size`` pictures instead of the usual, in part."""
        places = _order(self.targets, self.seed, self.task, epoch, self.balanced)
        order = torch.from_numpy(places) % max(len(self.targets), 1)
        for whole in order.split(size or self.batch_size)[start:]:
            chosen = torch.tensor(part.of(whole.tolist()))
            yield FeatureBatch(self.features[chosen], self.targets[chosen])

    def forward(self, model: Any, teacher: Teacher | None, batch: FeatureBatch) -> tuple[Outputs, Outputs | None]:
        """What head and teacher say of the same features."""
        tokens = as_tokens(batch.features.to(model.device))
        told = teacher.from_tokens(tokens, ()) if teacher is not None else None
        return outputs_of(model.head, tokens, (), model.watched), told


class Piece(NamedTuple):
    """A process's piece of a batch: how many of its pictures are the process's own, and how many the whole has."""

    batch: Any
    own: int
    whole: int


def grouped_pieces(feed: Feed, epoch: int, start: int, size: int) -> Iterator[list[Piece]]:
    """This process's pieces of an epoch's batches from the ``start``-th on, ``size`` batches at a time."""
    mine, group = part(), []
    for index, batch in enumerate(feed.batches(epoch, start, part=mine), start):
        whole = min(feed.batch_size, feed.count - index * feed.batch_size)
        group.append(Piece(batch, mine.own(whole), whole))
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def owned(feed: Feed) -> Iterator[Any]:
    """All batches of a feed of plain views; where processes share the work, this one's part of them."""
    mine = part()
    for index, batch in enumerate(feed.batches(0, 0, part=mine)):
        if mine.own(min(feed.batch_size, feed.count - index * feed.batch_size)):
            yield batch


def _order(targets: Tensor, seed: int, task: int, epoch: int, balanced: bool) -> np.ndarray:
    if not balanced:
        return epoch_order(len(targets), seed, task, epoch)
    return balanced_order(targets.numpy(), seed, task, epoch)


def as_tokens(features: Tensor) -> Tokens:
    """Pooled features [B, d] as tokens without patches."""
    return Tokens(features, features.new_empty(len(features), 0, features.shape[1]), (0, 0))
