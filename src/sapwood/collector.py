"""What the layers of a network see of a round's pictures: streamed past whoever asks, and nothing when nobody does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sapwood.adapters.base import TokenChoice, summary_token
from sapwood.feeds import Feed, owned
from sapwood.network import Network
from sapwood.operations import Tally
from sapwood.progress import Progress
from sapwood.world.sums import summed, total


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
    def visit(self, look: Callable[[str, Tensor], None], *, shared: bool = False) -> None:
        """Call ``look`` with the ``input_key`` and the input [B, N, in] of every site's layer, batch by batch.

        Where processes learn together all of them see all pictures, or share them if the caller adds up.
        """
        batches = owned(self.feed) if shared else self.feed.batches(0, 0)
        with self._hooks(look):
            for images in self._images("looking at layers", batches):
                self.network.tokens(images)

    def second_moments(self, tokens: TokenChoice = "all") -> dict[str, Tensor]:
        """Mean of x xᵀ over the inputs x of each layer, float32 [in, in], by ``input_key``; not centred."""
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        prefix = self.network.backbone.info.prefix_tokens

        def look(key: str, x: Tensor) -> None:
            rows = x.reshape(-1, x.shape[-1]) if tokens == "all" else summary_token(x, tokens, prefix)
            rows = rows.float()
            gram = rows.T @ rows
            sums[key] = sums[key] + gram if key in sums else gram
            counts[key] = counts.get(key, 0) + len(rows)

        self.visit(look, shared=True)
        return {key: total(gram) / int(summed(torch.tensor(counts[key]))) for key, gram in sums.items()}

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
