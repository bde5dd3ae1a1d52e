"""What the layers of a network see of a round's pictures: streamed past whoever asks, and nothing when nobody does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sapwood.adapters.base import Vectors, token_rows
from sapwood.feeds import Feed, owned
from sapwood.network import Network
from sapwood.operations import Tally
from sapwood.progress import Progress
from sapwood.world.sums import summed


class _Mean:
    """Of x xᵀ by name, added up batch by batch where the rows are."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, key: str, rows: Tensor) -> None:
        gram = rows.T @ rows
        self.sums[key] = self.sums[key] + gram if key in self.sums else gram
        self.counts[key] = self.counts.get(key, 0) + len(rows)

    def taken(self) -> dict[str, Tensor]:
        """Over the rows of all processes, on the CPU."""
        counts = {key: int(summed(torch.tensor(count))) for key, count in self.counts.items()}
        return {key: summed(gram.cpu()) / counts[key] for key, gram in self.sums.items()}


class Collector:
    """The ``Statistics`` of a round.

    Args:
        network: whose layers are looked into, as it stands when a question is asked.
        feed: plain views of the round's training pictures.
        count: of the pictures, for the progress bar.
        progress: listens.
        check: may raise between batches.
        tally: counts what the passes take.
    """

    def __init__(
        self,
        network: Network,
        feed: Feed,
        count: int,
        progress: Progress | None = None,
        check: Callable[[], None] = lambda: None,
        tally: Tally | None = None,
    ) -> None:
        self.network, self.feed, self.count = network, feed, count
        self.progress, self.check, self.tally = progress or Progress(), check, tally or Tally()

    def pixels(self) -> Iterator[Tensor]:
        """Normalised pictures [B, 3, H, W], batch by batch."""
        for images in self._images("looking at pictures", self.feed.batches(0, 0)):
            yield self.network.pixels(images)

    @torch.no_grad()
    def visit(self, look: Callable[[str, Tensor], None]) -> None:
        """Call ``look`` with the ``input_key`` and the input [B, N, in] of every site's layer, batch by batch.

        Processes that learn together share the pictures.
        """
        with self._hooks(look):
            for images in self._images("looking at layers", owned(self.feed)):
                self.network.tokens(images)

    def second_moments(self, *wanted: Vectors) -> tuple[dict[str, Tensor], ...]:
        """For each that is wanted the mean of x xᵀ over each layer's inputs x [in, in], by ``input_key``."""
        found = tuple(_Mean() for _ in wanted)
        prefix = self.network.backbone.info.prefix_tokens

        def look(key: str, x: Tensor) -> None:
            rows = {tokens: token_rows(x, tokens, prefix) for tokens in {vectors.tokens for vectors in wanted}}
            for vectors, mean in zip(wanted, found, strict=True):
                mean.add(key, vectors.of(rows[vectors.tokens]))

        self.visit(look)
        return tuple(mean.taken() for mean in found)

    def _images(self, what: str, batches: Iterable[Any]) -> Iterator[Tensor]:
        self.progress.start(what, self.count)
        for batch in self.tally.over(batches):
            self.check()
            yield batch.images
            self.progress.advance(len(batch.images))
        self.progress.finish()

    @contextmanager
    def _hooks(self, look: Callable[[str, Tensor], None]) -> Iterator[None]:
        layers = {layer.sites[0].input_key: layer for layer in self.network.adapted}

        def hook(key: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
            look(key, inputs[0].detach())

        handles = [layer.register_forward_pre_hook(partial(hook, key)) for key, layer in layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
