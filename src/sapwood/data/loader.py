"""Batches of views from a store of decoded pictures."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sapwood.data.store import PictureStore
from sapwood.data.transforms import eval_view, train_view, view_key
from sapwood.errors import ConfigError

T = TypeVar("T")


class Batch(NamedTuple):
    """Views, class indices, and where in the store each picture lies."""

    images: Tensor  # uint8 [B, H, W, 3]
    targets: Tensor  # int64 [B]
    indices: Tensor  # int64 [B]


@dataclass(frozen=True)
class Views:
    """How pictures are shown: ``augment`` gives the random view of (seed, task, epoch, picture), else the centre."""

    image_size: int
    augment: bool
    seed: int = 0
    task: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ConfigError(f"image_size must be >= 1, got {self.image_size}")

    def of(self, store: PictureStore, index: int) -> np.ndarray:
        """The view of one picture, uint8 [image_size, image_size, 3]."""
        if not self.augment:
            return eval_view(store[index], self.image_size)
        return train_view(
            store[index], self.image_size, view_key(self.seed, self.task, self.epoch, store.sha256[index])
        )


class Batches(Generic[T]):
    """Iterable over batches, again and again the same; ``len`` counts those that will come."""

    def __init__(self, loader: DataLoader[T], count: int) -> None:
        self._loader = loader
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        return iter(self._loader)


def batches(
    store: PictureStore,
    targets: Tensor,
    views: Views,
    *,
    batch_size: int,
    order: Sequence[int] | np.ndarray | None = None,
    start: int = 0,
    workers: int = 0,
) -> Batches[Batch]:
    """The pictures of ``store`` in batches; the last one may be short. What comes does not depend on ``workers``.

    Args:
        store: decoded pictures.
        targets: int64 [len(store)], the class index of each.
        views: how they are shown.
        batch_size: pictures in a batch.
        order: indices into the store, in the order wanted (``epoch_order``); by default all, as they lie.
        start: batches left out at the beginning; their pictures are not touched.
        workers: processes that prepare views; 0 does it in this one.
    """
    if len(targets) != len(store):
        raise ValueError(f"{len(targets)} targets for {len(store)} pictures")
    order = range(len(store)) if order is None else order
    return grouped(partial(_batch, store, targets, views), order, batch_size=batch_size, start=start, workers=workers)


def grouped(
    read: Callable[[list[int]], T], order: Sequence[int] | np.ndarray, *, batch_size: int, start: int, workers: int
) -> Batches[T]:
    """What ``read`` makes of each ``batch_size`` indices of ``order``, from the ``start``-th batch on.

    ``read`` runs in ``workers`` processes, or in this one if there are none; it must be picklable.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be >= 1, got {batch_size}")
    indices = [int(index) for index in order]
    groups = [indices[first : first + batch_size] for first in range(0, len(indices), batch_size)][start:]
    loader: DataLoader[T] = DataLoader(
        _Groups(read),
        batch_size=None,
        sampler=groups,  # each "index" is the list of a whole batch
        num_workers=workers,
        # fork shares the store's memory with the workers; elsewhere it travels to each of them
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        generator=torch.Generator().manual_seed(0),  # else the loader draws from the global one
    )
    return Batches(loader, len(groups))


def epoch_order(count: int, seed: int, task: int, epoch: int) -> np.ndarray:
    """Order of ``count`` pictures in an epoch, int64 [count]; a function of its arguments only."""
    digest = hashlib.blake2b(f"{seed}/{task}/{epoch}/order".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big"))).permutation(count)


def _batch(store: PictureStore, targets: Tensor, views: Views, indices: list[int]) -> Batch:
    size = views.image_size
    images = np.empty((len(indices), size, size, 3), np.uint8)
    for row, index in enumerate(indices):
        images[row] = views.of(store, index)
    where = torch.tensor(indices, dtype=torch.int64)
    return Batch(torch.from_numpy(images), targets[where], where)


class _Groups(Dataset[T]):
    """Maps the indices of a batch to the batch: one item is one batch, so nothing needs collating."""

    def __init__(self, read: Callable[[list[int]], T]) -> None:
        self.read = read

    def __getitem__(self, indices: list[int]) -> T:
        return self.read(indices)
