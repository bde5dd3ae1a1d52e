"""Batches of views from a store of decoded pictures."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sapwood.data.kept import KeptPictures
from sapwood.data.reading import each, usable_threads
from sapwood.data.store import PictureStore
from sapwood.data.transforms import eval_view, train_view, view_key
from sapwood.errors import ConfigError, DataError
from sapwood.world import WHOLE, Part

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

    def of(self, store: PictureStore, place: int) -> np.ndarray:
        """The view of one picture, uint8 [image_size, image_size, 3]; for ``place`` see ``balanced_order``."""
        again, index = divmod(place, len(store))
        if not self.augment:
            return eval_view(store[index], self.image_size)
        shown = f"{store.sha256[index]}/{again}" if again else store.sha256[index]
        return train_view(store[index], self.image_size, view_key(self.seed, self.task, self.epoch, shown))


class Batches(Generic[T]):
    """Iterable over batches, again and again the same; ``len`` counts those that will come."""

    def __init__(self, again: Callable[[], Iterator[T | DataError]], count: int) -> None:
        self._again = again
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        for batch in self._again():
            if isinstance(batch, DataError):
                raise batch
            yield batch


def batches(
    store: PictureStore,
    targets: Tensor,
    views: Views,
    *,
    batch_size: int,
    order: Sequence[int] | np.ndarray | None = None,
    start: int = 0,
    workers: int = 0,
    part: Part = WHOLE,
) -> Batches[Batch]:
    """The pictures of ``store`` in batches; the last one may be short. What comes does not depend on ``workers``.

    Args:
        store: decoded pictures.
        targets: int64 [len(store)], the class index of each.
        views: how they are shown.
        batch_size: pictures in a batch.
        order: indices into the store, in the order wanted (``epoch_order``), or places (``balanced_order``); by
            default all, as they lie.
        start: batches left out at the beginning; their pictures are not touched.
        workers: processes that prepare views; 0 does it in this one.
        part: the piece of every batch that comes.
    """
    if len(targets) != len(store):
        raise ValueError(f"{len(targets)} targets for {len(store)} pictures")
    order = range(len(store)) if order is None else order
    options = {"batch_size": batch_size, "start": start, "workers": workers, "threads": decoding_threads(store)}
    return grouped(partial(_batch, store, targets, views), order, part=part, **options)


def decoding_threads(store: KeptPictures[Any]) -> int:
    """Threads for a process that makes views of a store itself: one, unless pictures have to be decoded for them."""
    return usable_threads() if store.anew else 1


def grouped(
    read: Callable[[list[int]], T],
    order: Sequence[int] | np.ndarray,
    *,
    batch_size: int,
    start: int,
    workers: int,
    threads: int = 1,
    part: Part = WHOLE,
) -> Batches[T]:
    """What ``read`` makes of ``part`` of each ``batch_size`` indices of ``order``, from the ``start``-th batch on.

    ``read`` runs in ``workers`` processes, or in ``threads`` of this one if there are none; it must be picklable.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be >= 1, got {batch_size}")
    indices = [int(index) for index in order]
    wholes = [indices[first : first + batch_size] for first in range(0, len(indices), batch_size)]
    groups = [part.of(whole) for whole in wholes[start:]]
    if not workers and threads > 1:
        return Batches(lambda: each(read, groups, threads, ahead=1), len(groups))
    loader: DataLoader[T | DataError] = DataLoader(
        _Groups(read),
        batch_size=None,
        sampler=groups,  # each "index" is the list of a whole batch
        num_workers=workers,
        # fork shares the store's memory with the workers; elsewhere it travels to each of them
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        generator=torch.Generator().manual_seed(0),  # else the loader draws from the global one
    )
    return Batches(lambda: iter(loader), len(groups))


def epoch_order(count: int, seed: int, task: int, epoch: int) -> np.ndarray:
    """Order of ``count`` pictures in an epoch, int64 [count]; a function of its arguments only."""
    return _random(seed, task, epoch, "order").permutation(count)


def balanced_order(targets: Sequence[int] | np.ndarray, seed: int, task: int, epoch: int) -> np.ndarray:
    """Order of an epoch of as many pictures as there are, in which all classes are shown equally often.

    Class-balanced sampling (Kang et al. 2020, "Decoupling representation and classifier", eq. 1 with q = 0), dealt
    instead of drawn: classes take turns over all epochs, and of a class every picture is shown before one is shown
    again. Classes of one size give ``epoch_order``.

    Args:
        targets: class of each of the n pictures.
        seed, task, epoch: with the targets, all that the order depends on.

    Returns:
        Places int64 [n]: index + n times how often the epoch has shown the picture before, which chooses another view.

    >>> sorted(balanced_order([7, 7, 7, 9], seed=0, task=0, epoch=0).tolist())[-2:]  # the only 9, and once more
    [3, 7]
    """
    classes, place, sizes = np.unique(np.asarray(targets), return_inverse=True, return_counts=True)
    count, number = len(place), len(classes)
    if not count or (sizes == sizes[0]).all():
        return epoch_order(count, seed, task, epoch)
    shown = []
    for position in range(number):
        members = np.flatnonzero(place == position)
        first, end = (-((position - done * count) // number) for done in (epoch, epoch + 1))
        turns = np.arange(first, end)
        cycles, inside = np.divmod(turns, len(members))
        orders = {
            cycle: _random(seed, task, f"{classes[position]}/{cycle}", "turns").permutation(members)
            for cycle in np.unique(cycles).tolist()
        }
        chosen = [int(orders[cycle][step]) for cycle, step in zip(cycles.tolist(), inside.tolist(), strict=True)]
        before: Counter[int] = Counter()
        for index in chosen:
            shown.append(index + count * before[index])
            before[index] += 1
    return _random(seed, task, epoch, "order").permutation(np.array(shown, dtype=np.int64))


def _random(seed: int, task: int, epoch: int | str, what: str) -> np.random.Generator:
    digest = hashlib.blake2b(f"{seed}/{task}/{epoch}/{what}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))


def _batch(store: PictureStore, targets: Tensor, views: Views, indices: list[int]) -> Batch:
    size = views.image_size
    images = np.empty((len(indices), size, size, 3), np.uint8)
    for row, index in enumerate(indices):
        images[row] = views.of(store, index)
    where = torch.tensor(indices, dtype=torch.int64) % max(len(store), 1)
    return Batch(torch.from_numpy(images), targets[where], where)


class _Groups(Dataset[T | DataError]):
    """Maps the indices of a batch to the batch: one item is one batch, so nothing needs collating.

    A ``DataError`` is given, not raised: raised in a worker, it would arrive as a traceback in a message.
    """

    def __init__(self, read: Callable[[list[int]], T]) -> None:
        self.read = read

    def __getitem__(self, indices: list[int]) -> T | DataError:
        try:
            return self.read(indices)
        except DataError as error:
            return error
