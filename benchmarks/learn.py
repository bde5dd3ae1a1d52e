"""What `learn` costs beside its bare steps, and what a round leaves on disk beside what its method declares.

    python benchmarks/learn.py [--json] [--size 112] [--pictures 160] [--epochs 3]

A round of seq-lora on JPEG files, from reading them to the committed version, against the same number of training
steps on one ready batch, in one process; and the bytes of the round's files against the declared tensors.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from telling import tell
from torch.nn import functional as F

from sapwood import Learner
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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--pictures", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder / "pictures", options.pictures)
        training = {"epochs": options.epochs, "validation": 0.0}
        learner = Learner.create(
            folder / "state",
            backbone=BACKBONE,
            method="seq-lora",
            image_size=options.size,
            settings={"training": training},
        )
        learner.network  # noqa: B018 - building the backbone is not part of a round
        began = time.perf_counter()
        learner.learn(folder / "pictures")
        whole = time.perf_counter() - began
        batch = training_config(learner.record).batch_size
        steps = math.ceil(options.pictures / batch) * options.epochs
        step = bare_step_seconds(learner, options.size, 7)
        task = learner.record["tasks"][-1]
        files = {path: entry["bytes"] for path, entry in learner.record["files"].items()}
    tensors = sum(size for path, size in files.items() if path.endswith(".safetensors"))
    found = {
        "learn_over_bare_steps": round(whole / (steps * step), 3),
        "learn_seconds": round(whole, 2),
        "steps": steps,
        "step_seconds": round(step, 3),
        "files_over_declared": round(sum(files.values()) / task["declared_bytes"], 4),
        "tensor_files_over_declared": round(tensors / task["declared_bytes"], 4),
    }
    tell(found, options.json)


if __name__ == "__main__":
    main()
