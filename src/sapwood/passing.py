"""Passes over all pictures of a store in plain views: features, logits, whatever a function makes of a batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sapwood.data.loader import Views, batches
from sapwood.data.rows import FileRows, RowBuffer
from sapwood.data.store import PictureStore
from sapwood.errors import Interrupted
from sapwood.network import Network
from sapwood.progress import Progress
from sapwood.world import part
from sapwood.world.sums import gathered

BUDGET = 256 * 2**20
"""Bytes of features of a round that are kept in memory."""
MEMORY = 64 * 2**20
"""Bytes of features that a network's memory holds of adapters that move."""


class Rows(Protocol):
    """Where a pass over pictures keeps what it has computed, so that a killed one goes on."""

    def keep_rows(self, what: str, first: int, rows: Tensor) -> None:
        """Keep the results [n, ...] for the pictures ``first`` and after of the pass of that name."""

    def kept_rows(self, what: str) -> Tensor | None:
        """What the pass has kept, from its first picture on."""


@dataclass(frozen=True)
class Keeping:
    """Rows, and the longest time in seconds after which a pass keeps what it has."""

    rows: Rows
    seconds: float


def run_pass(store: PictureStore, function: Callable[[Tensor], Tensor], **options: Any) -> Tensor:
    """A function of uint8 pictures [B, H, W, 3] over the plain views of all pictures; on the CPU, in order.

    Options are those of ``stored_pass``, but for ``budget``.
    """
    found = stored_pass(store, function, budget=None, **options)
    assert isinstance(found, Tensor)
    return found


@torch.no_grad()
def stored_pass(
    store: PictureStore,
    function: Callable[[Tensor], Tensor],
    *,
    image_size: int,
    batch_size: int,
    workers: int = 0,
    what: str = "features",
    progress: Progress | None = None,
    check: Callable[[], None] = lambda: None,
    keeping: Keeping | None = None,
    budget: int | None,
) -> Tensor | FileRows:
    """What ``run_pass`` gives, in a temporary file where it is more than ``budget`` bytes.

    With ``keeping``, a pass that is stopped or killed goes on after the last whole batch that was kept. The batches are
    those of an undisturbed pass, hence the numbers too, bit for bit. Processes that share the work have all in memory.
    """
    progress = progress or Progress()
    mine = part()
    if mine.size > 1:
        keeping, budget = None, None  # nobody has all rows before the end
    found = None if keeping is None else keeping.rows.kept_rows(what)
    out = RowBuffer(budget)
    if found is not None:
        out.append(found)
        del found
    first, size = len(out), 0
    new: list[Tensor] = []
    progress.start(what, len(store), first)
    last = time.monotonic()

    def put() -> None:
        nonlocal last, size
        if new:
            rows = torch.cat(new)
            if keeping is not None:
                keeping.rows.keep_rows(what, len(out), rows)
            out.append(rows)
            new.clear()
        last, size = time.monotonic(), 0

    targets = torch.zeros(len(store), dtype=torch.int64)
    views, start = Views(image_size, augment=False), math.ceil(first / batch_size)
    places: list[int] = []
    loaded = batches(store, targets, views, batch_size=batch_size, start=start, workers=workers, part=mine)
    for index, batch in enumerate(loaded, start):
        try:
            check()
        except Interrupted:
            put()
            raise
        whole = range(index * batch_size, min((index + 1) * batch_size, len(store)))
        own = whole[mine.rank :: mine.size]
        new.append(function(batch.images).float().cpu()[: len(own) if mine.size > 1 else None])
        size += new[-1].numel() * new[-1].element_size()
        places += own
        progress.advance(len(whole))
        late = keeping is not None and time.monotonic() - last >= keeping.seconds
        if late or (budget is not None and size > budget / 8):
            put()
    progress.finish()
    for rows in new:
        out.append(rows)
    done = out.close()
    return gathered(done, places, len(store)) if isinstance(done, Tensor) else done


def extract(network: Network, store: PictureStore, **options: Any) -> Tensor:
    """Pooled features [n, d], float32; with a memory, a backbone that no adapter moves computes those not held yet.

    Options are those of ``stored_features``, but for ``budget``.
    """
    found = stored_features(network, store, budget=None, **options)
    assert isinstance(found, Tensor)
    return found


def stored_features(
    network: Network,
    store: PictureStore,
    *,
    image_size: int,
    keeping: Keeping | None = None,
    budget: int | None = BUDGET,
    **options: Any,
) -> Tensor | FileRows:
    """What ``extract`` gives, in a temporary file where it is more than ``budget`` bytes; not so with a memory.

    With ``keeping`` a killed pass goes on; a memory needs none.
    """
    if network.memory is None or network.adapter.moves:
        return _features(network, store, image_size=image_size, keeping=keeping, budget=budget, **options)
    return recalled_features(network, store, image_size=image_size, **options)


def recalled_features(network: Network, store: PictureStore, *, image_size: int, **options: Any) -> Tensor:
    """Pooled features [n, d], float32, of a network with a memory: those are computed that it does not hold yet."""
    memory = network.memory
    assert memory is not None
    under = f"{network.fingerprint()}/{image_size}"
    keys = [f"{under}/{sha256}" for sha256 in store.sha256]
    if network.adapter.moves and 4 * network.head.dim * (len(memory) + len(keys)) > MEMORY:
        memory = {}  # what has moved on is never met again, but by runs that share it
    missing = [index for index, key in enumerate(keys) if key not in memory]
    found = _features(network, store.subset(missing), image_size=image_size, budget=None, **options)
    assert isinstance(found, Tensor)
    memory.update(zip((keys[index] for index in missing), found, strict=True))
    return torch.stack([memory[key] for key in keys]) if keys else found


def _features(network: Network, store: PictureStore, **options: Any) -> Tensor | FileRows:
    def pooled(images: Tensor) -> Tensor:
        return network.tokens(images)[0].pooled

    if not len(store):
        return torch.empty(0, network.head.dim)
    return stored_pass(store, pooled, **options)
