"""A tiny network whose adapter begins in a later block, pictures for it, and a listener."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sapwood.adapters import ADAPTERS
from sapwood.backbones import create_backbone
from sapwood.data.loader import Views
from sapwood.data.pictures import Pictures, as_picture
from sapwood.data.store import PictureStore
from sapwood.heads import HEADS
from sapwood.network import Network
from sapwood.prefixes import PrefixFeed
from sapwood.progress import Progress
from sapwood.training import Stop

SIDE = 28
COUNT = 40


def network(blocks: str = "-1", adapter: str = "lora", backbone: str = "random:dinov2-tiny") -> Network:
    made = create_backbone(backbone, SIDE if "dinov2" in backbone else None)
    config = ADAPTERS[adapter].Config
    settings = {"blocks": blocks} if "blocks" in config.__dataclass_fields__ else {}
    parts = ADAPTERS[adapter](config(**settings), made.sites, made.info)
    return Network(made, parts, HEADS["linear"](HEADS["linear"].Config(), made.info.dim))


class Heard(Progress):
    """What was said and done, and a stop after so many units of a kind of work."""

    def __init__(self, stop: Stop | None = None, what: str = "", after: int = 0) -> None:
        self.stop, self.at, self.after = stop, what, after
        self.doing, self.done, self.notes = "", dict[str, int](), list[str]()

    def start(self, what: str, total: int, done: int = 0) -> None:
        self.doing = what

    def advance(self, units: int, **facts: float) -> None:
        self.done[self.doing] = self.done.get(self.doing, 0) + units
        if self.stop is not None and self.doing == self.at and self.done[self.doing] >= self.after:
            self.stop.requested = True

    def note(self, text: str) -> None:
        self.notes.append(text)


def pictures(classes: str = "ab", size: int = 36, seed: int = 0, count: int = COUNT) -> PictureStore:
    random = np.random.default_rng([seed, *map(ord, classes)])
    base = random.integers(60, 200, (len(classes), 3))
    made = [
        as_picture(
            (base[index % len(classes)] + random.integers(-40, 40, (size, size + 4, 3))).clip(0, 255).astype(np.uint8),
            name=str(index),
            label=classes[index % len(classes)],
        )
        for index in range(count)
    ]
    return PictureStore(Pictures(made), 35)


def feed(model: Network, store: PictureStore, views: Views | None = None, **options: Any) -> PrefixFeed:
    targets = torch.tensor([int(label == "b") for label in store.pictures.labels])
    return PrefixFeed(
        model, 1, store, targets, views or Views(SIDE, augment=True), 8, options.pop("workers", 0), **options
    )
