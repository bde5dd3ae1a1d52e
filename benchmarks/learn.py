"""What `learn` costs beside its bare steps, and what a round leaves on disk beside what its method declares.

    python benchmarks/learn.py [--json] [--size 112] [--pictures 160,600] [--epochs 3]

Rounds of seq-lora on JPEG files, a small one and one of 300 pictures a class, from reading them to the committed
version, each against the same number of training steps on one ready batch, in one process; which share of the time
between first and last step was spent waiting for batches; and the bytes of the files against the declared tensors.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from telling import tell
from torch.nn import functional as F

from sapwood import Learner, training
from sapwood.assembly import training_config
from sapwood.training import build_optimizer

BACKBONE = "random:dinov2-s14"


def write_pictures(folder: Path, count: int) -> None:
    """JPEG files of 640 x 480 in two classes."""
    rng = np.random.default_rng(0)
    for index in range(count):
        path = folder / f"class{index % 2}" / f"{index:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (15, 20, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)


class Waiting:
    """Stands in the trainer's way to its batches and counts the seconds that they are waited for."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.began = self.ended = math.nan
        self._ask = training.grouped_pieces

    def __call__(self, *asked: Any) -> Iterator[Any]:
        """The batches, as the trainer would get them."""
        pieces = iter(self._ask(*asked))
        while True:
            before = time.perf_counter()
            if math.isnan(self.began):
                self.began = before
            found = next(pieces, None)
            self.ended = time.perf_counter()
            self.seconds += self.ended - before
            if found is None:
                return
            yield found

    @property
    def share(self) -> float:
        """Of the time from the first batch asked for to the end of the last epoch."""
        return self.seconds / (self.ended - self.began)


def bare_step_seconds(learner: Learner, size: int, repeats: int) -> float:
    """Median seconds of one step of the learned network on a ready batch."""
    config = training_config(learner.record)
    network = learner.network
    optimizer = build_optimizer(network.trainable(), config)
    images = torch.randint(0, 256, (config.batch_size, size, size, 3), dtype=torch.uint8)
    targets = torch.randint(0, 2, (config.batch_size,))
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        F.cross_entropy(network(images).logits, targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - began)
    return sorted(times[1:])[repeats // 2]


def measured(pictures: int, size: int, epochs: int) -> dict[str, float]:
    """A round of so many pictures, then its bare steps."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder / "pictures", pictures)
        learner = Learner.create(
            folder / "state",
            backbone=BACKBONE,
            method="seq-lora",
            image_size=size,
            settings={"training": {"epochs": epochs, "validation": 0.0}},
        )
        learner.network  # noqa: B018 - building the backbone is not part of a round
        waiting = Waiting()
        with mock.patch.object(training, "grouped_pieces", waiting):
            began = time.perf_counter()
            learner.learn(folder / "pictures")
            whole = time.perf_counter() - began
        batch = training_config(learner.record).batch_size
        steps = math.ceil(pictures / batch) * epochs
        step = bare_step_seconds(learner, size, 15)
        task = learner.record["tasks"][-1]
        files = {path: entry["bytes"] for path, entry in learner.record["files"].items()}
    tensors = sum(size for path, size in files.items() if path.endswith(".safetensors"))
    return {
        "learn_over_bare_steps": round(whole / (steps * step), 3),
        "waiting_share": round(waiting.share, 4),
        "learn_seconds": round(whole, 2),
        "steps": steps,
        "step_seconds": round(step, 3),
        "files_over_declared": round(sum(files.values()) / task["declared_bytes"], 4),
        "tensor_files_over_declared": round(tensors / task["declared_bytes"], 4),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--pictures", type=lambda text: [int(count) for count in text.split(",")], default=[160, 600])
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    tell({str(count): measured(count, options.size, options.epochs) for count in options.pictures}, options.json)


if __name__ == "__main__":
    main()
