"""An epoch with the adapter on the last blocks alone: from pictures, and from hidden states kept on disk.

    python benchmarks/prefix.py [--json] [--backbone random:dinov2-s14] [--image-size 84] [--pictures 96] [--batch 32]
                                [--adapted 4] [--epochs 5] [--precision fp32] [--turns 5] [--compile]

Synthetic pictures, LoRA of rank 16 on q and v of the last ``--adapted`` blocks, a linear head of ten classes, AdamW.
``plain`` makes fresh views in every epoch and computes all blocks, ``cached`` (--cache-prefix 1) reads what the blocks
below the adapter gave for the plain view, ``all blocks`` is what is adapted by default. The sides take turns within one
process; ratios are taken turn by turn, beside their median stand the smallest and the largest. Times are the
processor's, of one thread: what they are on an idle machine, and hardly changed by other work on a busy one.

``rounding`` is what keeping float16 instead of float32 would change: largest difference of a hidden number over the
largest such number, and the same of the pooled features. With ``--compile`` the plain step under ``torch.compile``
stands beside the plain step, with the wall seconds that compiling takes; that needs a C++ compiler.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from telling import tell
from torch.nn import functional as F

from sapwood.adapters.lora import Lora, LoraConfig
from sapwood.backbones import create_backbone
from sapwood.data.loader import Views
from sapwood.data.pictures import Pictures, as_picture
from sapwood.data.store import PictureStore
from sapwood.feeds import PictureFeed
from sapwood.heads import HEADS
from sapwood.network import Network
from sapwood.prefixes import PrefixFeed
from sapwood.progress import Progress
from sapwood.settings import TrainingConfig
from sapwood.task import Task
from sapwood.training import build_optimizer

CLASSES = 10
HEADROOM = 1.25


def made(options: argparse.Namespace, blocks: str) -> Network:
    """A network with an adapter in some blocks."""
    backbone = create_backbone(options.backbone, options.image_size)
    adapter = Lora(LoraConfig(blocks=blocks), backbone.sites, backbone.info)
    head = HEADS["linear"](HEADS["linear"].Config(), backbone.info.dim)
    head.grow(CLASSES, torch.Generator().manual_seed(0))
    every = tuple(range(CLASSES))
    adapter.before_task(Task(0, "all", every, every, CLASSES, 0), None)
    network = Network(backbone, adapter, head)
    network.set_precision(options.precision)
    return network


def pictures(options: argparse.Namespace) -> tuple[PictureStore, torch.Tensor]:
    """Noise, a little larger than the views."""
    rng, side = np.random.default_rng(0), round(HEADROOM * options.image_size)
    arrays = (rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(options.pictures))
    store = PictureStore(
        Pictures(as_picture(array, name=str(number), label="a") for number, array in enumerate(arrays)), side
    )
    return store, torch.arange(options.pictures) % CLASSES


def epoch_of(network: Network, feed: PictureFeed, adapt: Any = None) -> Callable[[int], None]:
    """An epoch of training steps."""
    optimizer = build_optimizer(network.trainable(), TrainingConfig())
    forward = adapt or (lambda batch: feed.forward(network, None, batch)[0].logits)

    def epoch(number: int) -> None:
        batches: Iterable[Any] = feed.batches(number, 0)
        for batch in batches:
            F.cross_entropy(forward(batch), batch.targets).backward()
            optimizer.step()
            optimizer.zero_grad()

    return epoch


def seconds(function: Callable[[int], None], number: int) -> float:
    """Processor time of an epoch."""
    began = time.process_time()
    function(number)
    return time.process_time() - began


def shown(values: list[float]) -> dict[str, Any]:
    """Median and range."""
    return {"median": round(statistics.median(values), 3), "range": [round(min(values), 3), round(max(values), 3)]}


@torch.no_grad()
def rounding(network: Network, feed: PrefixFeed) -> dict[str, float]:
    """What float16 on disk would change."""
    hidden = next(iter(feed.batches(0, 0))).hidden
    low = hidden.half().to(hidden.dtype)
    one, two = (network.resume(each, feed.blocks, feed.grid).pooled for each in (hidden, low))
    return {
        "largest_number": round(float(hidden.abs().max()), 2),
        "hidden": float((hidden - low).abs().max() / hidden.abs().max()),
        "pooled": float((one - two).abs().max() / one.abs().max()),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both sides and the default."""
    store, targets = pictures(options)
    views = Views(options.image_size, augment=True)
    plain, every = made(options, f"-{options.adapted}:"), made(options, "all")
    cached = made(options, f"-{options.adapted}:")
    blocks = cached.backbone.info.depth - options.adapted
    kept = PrefixFeed(cached, blocks, store, targets, views, options.batch, 0)
    began = time.process_time()
    kept.fill(Progress())
    filling = time.process_time() - began
    assert kept.cache is not None
    sides = {
        "plain": epoch_of(plain, PictureFeed(store, targets, views, options.batch, 0)),
        "cached": epoch_of(cached, kept),
        "all blocks": epoch_of(every, PictureFeed(store, targets, views, options.batch, 0)),
    }
    compiling = 0.0
    if options.compile:
        other = made(options, f"-{options.adapted}:")
        step = torch.compile(lambda images: other(images).logits)
        sides["compiled"] = epoch_of(
            other, PictureFeed(store, targets, views, options.batch, 0), lambda batch: step(batch.images)
        )
        wall = time.perf_counter()
        sides["compiled"](0)
        compiling = time.perf_counter() - wall
    for epoch in sides.values():
        epoch(0)
    turns = [{name: seconds(epoch, turn) for name, epoch in sides.items()} for turn in range(1, options.turns + 1)]
    found: dict[str, Any] = {
        "epoch_seconds": {name: round(statistics.median(turn[name] for turn in turns), 3) for name in sides},
        "plain_over_cached": shown([turn["plain"] / turn["cached"] for turn in turns]),
        "all_blocks_over_cached": shown([turn["all blocks"] / turn["cached"] for turn in turns]),
        "fill_seconds": round(filling, 3),
        "training_plain_over_cached": shown(
            [options.epochs * turn["plain"] / (filling + options.epochs * turn["cached"]) for turn in turns]
        ),
        "bytes_a_picture": kept.cache.bytes_each,
        "rounding": rounding(cached, kept),
    }
    if options.compile:
        found["plain_over_compiled"] = shown([turn["plain"] / turn["compiled"] for turn in turns])
        found["compile_seconds"] = round(compiling, 1)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--backbone", default="random:dinov2-s14")
    parser.add_argument("--image-size", type=int, default=84)
    parser.add_argument("--pictures", type=int, default=96)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--adapted", type=int, default=4, help="blocks, counted from the last")
    parser.add_argument("--epochs", type=int, default=5, help="of the whole training that is reckoned")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="the plain step under torch.compile too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        if options.backbone.startswith("random:"):
            os.environ["SAPWOOD_CACHE"] = name  # nothing of an earlier run, and nothing is left
        found = measure(options)
    tell(found, options.json)


if __name__ == "__main__":
    main()
