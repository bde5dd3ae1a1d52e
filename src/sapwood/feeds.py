"""What a round trains on and passes over: pictures, or features that were computed once."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sapwood.backbones.base import Tokens
from sapwood.data.loader import Batch, Views, batches, epoch_order
from sapwood.data.mask_store import MaskStore
from sapwood.data.mask_views import MaskBatch, MaskViews, mask_batches
from sapwood.data.store import PictureStore
from sapwood.network import Network, Teacher, outputs_of
from sapwood.objectives.base import Outputs
from sapwood.progress import Progress


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
    """Pictures with one class each."""

    def __init__(
        self,
        store: PictureStore,
        targets: Tensor,
        views: Views,
        batch_size: int,
        workers: int,
        *,
        stays: bool = False,
    ) -> None:
        super().__init__(len(store), batch_size, stays=stays)
        self.store, self.targets, self.views, self.workers = store, targets, views, workers

    def batches(self, epoch: int, start: int, size: int | None = None) -> Iterable[Batch]:
        """The batches of an epoch from the ``start``-th on, of ``size`` pictures instead of the usual if given."""
        order = epoch_order(len(self.store), self.views.seed, self.views.task, epoch)
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

    def __init__(self, features: Tensor, targets: Tensor, batch_size: int, seed: int, task: int) -> None:
        self.features, self.targets = features, targets
        self.batch_size, self.seed, self.task = batch_size, seed, task

    def __len__(self) -> int:
        """Batches an epoch."""
        return math.ceil(len(self.features) / self.batch_size)

    def batches(self, epoch: int, start: int, size: int | None = None) -> Iterator[FeatureBatch]:
        """The batches of an epoch from the ``start``-th on, of ``size`` pictures instead of the usual if given."""
        order = torch.from_numpy(epoch_order(len(self.features), self.seed, self.task, epoch))
        for chosen in order.split(size or self.batch_size)[start:]:
            yield FeatureBatch(self.features[chosen], self.targets[chosen])

    def forward(self, model: Any, teacher: Teacher | None, batch: FeatureBatch) -> tuple[Outputs, Outputs | None]:
        """What head and teacher say of the same features."""
        tokens = as_tokens(batch.features.to(model.device))
        told = teacher.from_tokens(tokens, ()) if teacher is not None else None
        return outputs_of(model.head, tokens, (), model.watched), told


def as_tokens(features: Tensor) -> Tokens:
    """Pooled features [B, d] as tokens without patches."""
    return Tokens(features, features.new_empty(len(features), 0, features.shape[1]), (0, 0))


@torch.no_grad()
def passes(
    network: Network,
    store: PictureStore,
    functions: Sequence[Callable[[Tensor], Tensor]],
    *,
    image_size: int,
    batch_size: int,
    workers: int = 0,
    what: str = "features",
    progress: Progress | None = None,
    check: Callable[[], None] = lambda: None,
) -> list[Tensor]:
    """Functions of uint8 pictures [B, H, W, 3] over the plain views of all pictures; results on the CPU, in order."""
    progress = progress or Progress()
    out: list[list[Tensor]] = [[] for _ in functions]
    progress.start(what, len(store))
    targets = torch.zeros(len(store), dtype=torch.int64)
    for batch in batches(store, targets, Views(image_size, augment=False), batch_size=batch_size, workers=workers):
        check()
        for kept, function in zip(out, functions, strict=True):
            kept.append(function(batch.images).float().cpu())
        progress.advance(len(batch.targets))
    progress.finish()
    return [torch.cat(kept) for kept in out]


def extract(network: Network, store: PictureStore, *, image_size: int, **options: Any) -> Tensor:
    """Pooled features [n, d], float32; with a memory, a backbone that stays computes only those not held yet."""
    memory = network.memory
    if memory is None or network.adapter.moves:
        return _features(network, store, image_size=image_size, **options)
    keys = [f"{network.backbone.info.sha256}/{network.precision}/{image_size}/{sha256}" for sha256 in store.sha256]
    missing = [index for index, key in enumerate(keys) if key not in memory]
    found = _features(network, store.subset(missing), image_size=image_size, **options)
    memory.update(zip((keys[index] for index in missing), found, strict=True))
    return torch.stack([memory[key] for key in keys]) if keys else found


def _features(network: Network, store: PictureStore, **options: Any) -> Tensor:
    if not len(store):
        return torch.empty(0, network.backbone.info.dim)
    return passes(network, store, [lambda images: network.tokens(images)[0].pooled], **options)[0]
