"""A hundred rounds of ten classes through the real learner: what grows with their number.

    python benchmarks/hundred.py [--methods ranpac,clora,inflora] [--rounds 100] [--classes 10] [--json]

Made-up pictures, a tiny backbone with random weights, so that what does not belong to the backbone shows. For rounds
near 1, 10, 50 and the last: seconds of the round (median of five neighbours), bytes that it stored, resident memory,
and seconds of a prediction of 32 pictures after merging. A head has a row a class, which grows by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from sapwood import Learner
from sapwood.errors import NotMergeable

PICTURES, SIDE = 4, 28
TRAINING = {"epochs": 1, "batch_size": 20, "precision": "fp32", "validation": 0.0}


def round_of(index: int, classes: int) -> list[tuple[np.ndarray, str]]:
    """Pictures of a round's classes: a colour a class, and noise."""
    rng = np.random.default_rng(index)
    found = []
    for number in range(classes):
        colour = rng.integers(0, 193, 3)
        noise = rng.integers(0, 64, (PICTURES, SIDE, SIDE, 3))
        found += [(image.astype(np.uint8), f"{index:03d}-{number}") for image in colour + noise]
    return found


def predict_seconds(learner: Learner) -> float:
    """Of 32 pictures through the network, merged where that is possible; the smallest of five."""
    network = learner.network
    with contextlib.suppress(NotMergeable):
        network.merge()
    images = torch.zeros(32, SIDE, SIDE, 3, dtype=torch.uint8)
    found = []
    with torch.no_grad():
        for _ in range(5):
            began = time.process_time()
            network.predict(images)
            found.append(time.process_time() - began)
    network.unmerge()
    return min(found)


def measure(method: str, rounds: int, classes: int, folder: Path) -> list[dict[str, Any]]:
    """What each round took and left."""
    settings = {"training": TRAINING}
    learner = Learner.create(folder / method, backbone="random:dinov2-tiny", method=method, settings=settings)
    process, found = psutil.Process(), []
    for index in range(rounds):
        learner.learn(round_of(index, classes))
        task = learner.record["tasks"][-1]
        found.append(
            {
                "seconds": task["seconds"],
                "stored": sum(file.stat().st_size for file in (folder / method / task["folder"]).iterdir()),
                "resident": process.memory_info().rss,
                "predict": predict_seconds(learner),
            }
        )
    return found


def near(rows: list[dict[str, Any]], index: int, key: str) -> float:
    """Median of a row and its neighbours."""
    first = min(max(0, index - 2), max(0, len(rows) - 5))
    return statistics.median(row[key] for row in rows[first : first + 5])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", type=lambda text: text.split(","), default=["ranpac", "clora", "inflora"])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for method in options.methods:
            rows = measure(method, options.rounds, options.classes, Path(name))
            wanted = sorted({index for index in (3, 10, 50, options.rounds) if index <= options.rounds})
            found[method] = {str(number): {key: near(rows, number - 1, key) for key in rows[0]} for number in wanted}
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    for method, points in found.items():
        for number, row in points.items():
            sys.stdout.write(
                f"{method} round {number}: {row['seconds']:.3f} s, {row['stored'] / 1e3:.1f} kB stored, "
                f"{row['resident'] / 1e6:.0f} MB resident, {1e3 * row['predict']:.1f} ms a prediction of 32\n"
            )


if __name__ == "__main__":
    main()
