"""The blocks below the first adapted one, computed once a picture: training goes on from what they gave."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sapwood.adapters.base import Adapter
from sapwood.backbones.split import Split
from sapwood.data.loader import Batch, Views, batches, grouped
from sapwood.data.store import PictureStore
from sapwood.data.transforms import eval_view, train_view, view_key
from sapwood.errors import ConfigError, SapwoodError
from sapwood.feeds import PictureFeed
from sapwood.hidden_cache import HiddenCache, why
from sapwood.network import Network, Teacher
from sapwood.objectives.base import Outputs
from sapwood.observing import outputs_of
from sapwood.operations import Tally
from sapwood.progress import Progress
from sapwood.settings import TrainingConfig
from sapwood.world import WHOLE, Part, part
from sapwood.world.machine import local_rank
from sapwood.world.pieces import asked
from sapwood.world.sums import either

_ASIDE = frozenset({"maps", "attention"})
"""What objectives may need of blocks all over the depth."""

# Numbers of one picture depend, in their last bits, on how many are computed together: here always on the same.
_TOGETHER = 32


def first_adapted(network: Network, needs: Collection[str], kind: str) -> int:
    """How many blocks lie below the first adapted one.

    Args:
        network: that would be trained.
        needs: of the objective.
        kind: of task.

    Raises:
        ConfigError: nothing can be kept of them; one line that says why.
    """
    backbone, adapter = network.backbone, network.adapter
    kept = "--cache-prefix keeps what the blocks below the adapter give"
    if kind != "classification":
        raise ConfigError(f"{kept} of pictures with one class each, not of masks; leave it out")
    if not adapter.moves:
        raise ConfigError(f"{kept}, but here nothing is adapted and features are computed once anyway; leave it out")
    if not isinstance(backbone, Split):
        raise ConfigError(f"{kept}, but {backbone.info.name} is no plain chain of blocks; leave it out")
    if adapter.trains_backbone:
        raise ConfigError(f"{kept}, but here all blocks are trained; leave it out")
    if type(adapter).plan is not Adapter.plan:
        raise ConfigError(f"{kept}, but the adapter looks at whole pictures; leave it out")
    if aside := _ASIDE & set(needs):
        raise ConfigError(f"{kept}, but the objective compares the {' and '.join(sorted(aside))} of all; leave it out")
    if blocks := blocks_below(network):
        return blocks
    last = max(1, backbone.info.depth // 3)
    raise ConfigError(
        f"{kept}, but it begins in the first; leave the option out, or make a state with --set adapter.blocks=-{last}:"
    )


def blocks_below(network: Network) -> int:
    """How many blocks are not adapted, differentiated or read; 0 where the backbone cannot go on from there."""
    adapter = network.adapter
    if not isinstance(network.backbone, Split) or adapter.trains_backbone or type(adapter).plan is not Adapter.plan:
        return 0
    return min((*(site.block for site in adapter.sites), *network.reads), default=0)


def kept_views(config: TrainingConfig) -> int:
    """Views of each picture to train on whose hidden states are kept."""
    turns = min(config.cache_prefix, config.epochs)
    return turns if config.augment else min(turns, 1)


class HiddenBatch(NamedTuple):
    """Hidden states, class indices, where in the store each picture lies, and which rows could not be read."""

    hidden: Tensor  # [B, L, d]
    targets: Tensor  # int64 [B]
    indices: Tensor  # int64 [B]
    missing: tuple[int, ...] = ()


class PrefixFeed(PictureFeed):
    """Pictures as the hidden states that enter the first adapted block, kept on disk.

    Args:
        network: that computes them.
        blocks: below the first adapted one.
        store, targets, views, batch_size, workers, balanced: as of ``PictureFeed``.
        turns: how many views of a picture there are; epochs take turns with them. 1 is the plain view.
    """

    def __init__(
        self,
        network: Network,
        blocks: int,
        store: PictureStore,
        targets: Tensor,
        views: Views,
        batch_size: int,
        workers: int,
        *,
        turns: int = 1,
        balanced: bool = False,
    ) -> None:
        views = replace(views, augment=views.augment and turns > 1)
        super().__init__(store, targets, views, batch_size, workers, balanced=balanced)
        self.network, self.blocks, self.turns = network, blocks, turns if views.augment else 1
        side = views.image_size // network.backbone.info.patch
        self.grid = (side, side)
        self.cache: HiddenCache | None = None

    def fill(self, progress: Progress, check: Callable[[], None] = lambda: None, tally: Tally | None = None) -> None:
        """Compute what is not on disk yet; where it cannot be written, every step computes it anew.

        Where processes learn together each computes a part, and reads what the others wrote.
        """
        views, written, missing = len(self.store) * self.turns, list[str](), list[list[int]]()
        if not views:
            return
        cache, mine = self._opened(), part()
        size = f"{views * cache.bytes_each / 1e6:.1f} MB"

        def look() -> None:
            nonlocal size
            size += f" in {cache.folder}"
            cache.use()
            missing.extend(self._missing(cache, turn) for turn in range(self.turns))
            if local_rank():  # the first here looks at the disk for all, before any of them writes
                return
            if freed := cache.make_room(sum(map(len, missing))):
                progress.note(f"removed {freed / 1e6:.1f} MB of hidden states of other settings, unused for a day")
            if not cache.room_for(sum(map(len, missing))):
                raise OSError(errno.ENOSPC, "")

        def compute() -> None:
            progress.start(f"blocks 0-{self.blocks - 1}", sum(map(len, missing)))
            for turn, places in enumerate(missing):
                for batch in (tally or Tally()).over(self._together(turn, places, mine)):
                    check()
                    self._keep(cache, turn, batch, places, written)
                    progress.advance(len(batch.targets))
            progress.finish()

        if not (failure := _failure(look) or _failure(compute)):
            self.cache = cache
            progress.note(f"hidden states of {views} views ({views - sum(map(len, missing))} were there): {size}")
            return
        for name in written:
            cache.remove(name)
        progress.note(f"hidden states are not kept ({size}: {failure}); every step computes them anew")

    def batches(self, epoch: int, start: int, size: int | None = None, part: Part = WHOLE) -> Iterable[Any]:
        """The batches of an epoch from the ``start``-th on, ``size`` pictures instead of the usual, in part."""
        turn, order = epoch % self.turns, self.order(epoch) % max(len(self.store), 1)
        options: dict[str, Any] = {"start": start, "workers": self.workers, "part": part}
        if self.cache is None:
            views = self._views(turn)
            return batches(self.store, self.targets, views, batch_size=size or self.batch_size, order=order, **options)
        self.cache.use()
        read = partial(_read, self.cache, partial(view_name, self.store, self._views(turn)), self.targets)
        found = grouped(read, order, batch_size=size or self.batch_size, **options)
        return self._whole(self.cache, turn, found)

    def forward(self, model: Any, teacher: Teacher | None, batch: Any) -> tuple[Outputs, Outputs | None]:
        """What the network in training says of a batch, and what its teacher says of the same views."""
        if isinstance(batch, Batch):
            return super().forward(model, teacher, batch)
        hidden, told = batch.hidden.to(model.device), None
        if teacher is not None:
            told = teacher.from_tokens(teacher.resume(hidden, self.blocks, self.grid), ())
        tokens = model.resume(hidden, self.blocks, self.grid, model.watched)
        return outputs_of(model.head, tokens, (), model.watched), told

    @torch.no_grad()
    def _hidden(self, images: Tensor) -> Tensor:
        backbone = self.network.backbone
        assert isinstance(backbone, Split)
        return backbone.prefix(self.network.pixels(images), self.blocks).cpu()

    def _opened(self) -> HiddenCache:
        network, views, (down, across) = self.network, self.views, self.grid
        info = network.backbone.info
        what = {
            "backbone": info.sha256,
            "pixels": [info.mean, info.std],
            "precision": network.precision,
            "blocks": self.blocks,
            "image_size": views.image_size,
            "transform": _transform(views),
        }
        dtype = torch.bfloat16 if network.precision == "bf16" else torch.float32
        return HiddenCache(what, (info.prefix_tokens + down * across, info.dim), dtype)

    def _views(self, turn: int) -> Views:
        return replace(self.views, epoch=turn)

    def _missing(self, cache: HiddenCache, turn: int) -> list[int]:
        views = self._views(turn)
        return [index for index in range(len(self.store)) if view_name(self.store, views, index) not in cache]

    def _together(self, turn: int, places: list[int], mine: Part) -> Iterable[Batch]:
        """Views of the groups in which something is missing, this process's share of them."""
        groups = sorted({place // _TOGETHER for place in places})
        order = [
            index
            for group in groups
            if group % mine.size == mine.rank
            for index in range(group * _TOGETHER, min((group + 1) * _TOGETHER, len(self.store)))
        ]
        options: dict[str, Any] = {"batch_size": _TOGETHER, "order": order, "workers": self.workers}
        return batches(self.store, self.targets, self._views(turn), **options)

    def _keep(self, cache: HiddenCache, turn: int, batch: Batch, places: Sequence[int], written: list[str]) -> None:
        wanted, views = set(places), self._views(turn)
        for index, hidden in zip(batch.indices.tolist(), self._hidden(batch.images), strict=True):
            if index in wanted:
                name = view_name(self.store, views, index)
                cache.put(name, hidden)
                written.append(name)

    def _whole(self, cache: HiddenCache, turn: int, read: Iterable[HiddenBatch]) -> Iterator[HiddenBatch]:
        """Batches in which nothing is missing: what was damaged or removed meanwhile is computed anew."""
        views = self._views(turn)
        for batch in read:
            if rows := list(batch.missing):
                indices = batch.indices[rows].tolist()
                if asked():
                    self._refuse_missing(cache, [view_name(self.store, views, index) for index in indices])
                images = torch.from_numpy(np.stack([views.of(self.store, index) for index in indices]))
                batch.hidden[rows] = found = self._hidden(images)
                for index, hidden in zip(indices, found, strict=True):
                    with suppress(OSError):
                        cache.put(view_name(self.store, views, index), hidden)
            yield batch

    def _refuse_missing(self, cache: HiddenCache, names: list[str]) -> None:
        """What one process lacks all would have to compute, and they do not know of it."""
        for name in names:
            cache.remove(name)
        raise SapwoodError(
            f"hidden states of {len(names)} pictures are not, or no longer, in {cache.folder}, and a process with a "
            "piece of the backbone cannot compute them; give all machines one SAPWOOD_CACHE, and the same command again"
        )


def _failure(work: Callable[[], None]) -> str:
    """Why the disk refuses some work, here or where another process does the same; nothing if it does not."""
    failure = ""
    try:
        work()
    except OSError as error:
        failure = why(error)
    (failed,) = either(bool(failure))
    return failure or ("another process could not write" if failed else "")


def view_name(store: PictureStore, views: Views, index: int) -> str:
    """Of the view of one picture; what was decoded at another size is another picture."""
    sha256 = store.sha256[index]
    height, width = store.size(index)
    shown = view_key(views.seed, views.task, views.epoch, sha256) if views.augment else "plain"
    return f"{sha256} {height}x{width} {shown}"


def _read(cache: HiddenCache, name: Callable[[int], str], targets: Tensor, indices: list[int]) -> HiddenBatch:
    hidden = torch.empty(len(indices), *cache.shape, dtype=cache.dtype)
    missing = []
    for row, index in enumerate(indices):
        if (found := cache.get(name(index))) is None:
            missing.append(row)
        else:
            hidden[row] = found
    where = torch.tensor(indices, dtype=torch.int64)
    return HiddenBatch(hidden, targets[where], where, tuple(missing))


def _transform(views: Views) -> str:
    """What these views make of a picture that is always the same: changes when the code that makes them does."""
    down, across = np.mgrid[:61, :97]
    picture = np.stack([down * 4, across * 2, (down * across) % 251], axis=2).astype(np.uint8)
    seen = train_view(picture, views.image_size, 1) if views.augment else eval_view(picture, views.image_size)
    return hashlib.sha256(seen.tobytes()).hexdigest()
