"""Two processes that share every batch, against one: the same round, the same batches, one thread each.

    python benchmarks/processes.py [--turns 3] [--pictures 256] [--epochs 2] [--json]

`seq-lora` on a ViT-S with random weights at 112 px, batches of 32 made-up pictures. The sides take turns, each as the
command line does it, in processes of its own; compared are the seconds that the state records for the round (passes,
steps and measuring on validation pictures, without starting up), and the losses.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from telling import tell

LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def make_pictures(folder: Path, count: int) -> None:
    """Two classes of coloured noise, 128 x 128."""
    rng = np.random.default_rng(0)
    for index in range(count):
        pixels = rng.integers(0, 128, (128, 128, 3))
        pixels[..., index % 2] += 127
        place = folder / ("red", "green")[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{index:04d}.png")


def learn(processes: int, data: Path, state: Path, epochs: int) -> tuple[float, list[float]]:
    """Seconds of the round and the loss of each epoch."""
    command = [sys.executable, *([*LAUNCHER, str(processes)] if processes > 1 else []), "-m", "sapwood", "learn"]
    options = ["--backbone", "random:dinov2-s14", "--image-size", "112", "--method", "seq-lora", "--precision", "fp32"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(
        [*command, str(state), str(data), *options, "--epochs", str(epochs), "--json"],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    lines = next(state.glob("tasks/*/log.jsonl")).read_text("utf-8").splitlines()
    return json.loads(done.stdout)["tasks"][0]["seconds"], [json.loads(line)["loss"] for line in lines]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    ratios, apart, seconds = [], 0.0, {1: 0.0, 2: 0.0}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_pictures(folder / "pictures", options.pictures)
        for turn in range(options.turns):
            losses = {}
            for count in (1, 2):
                state = folder / f"{turn}-{count}"
                seconds[count], losses[count] = learn(count, folder / "pictures", state, options.epochs)
            ratios.append(seconds[1] / seconds[2])
            apart = max(apart, *(abs(one - two) for one, two in zip(*losses.values(), strict=True)))
    found = {
        "two_over_one_throughput": round(statistics.median(ratios), 3),
        "two_over_one_throughput_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "largest_difference_of_losses": apart,
        "seconds_one": round(seconds[1], 1),
        "seconds_two": round(seconds[2], 1),
    }
    tell(found, options.json)


if __name__ == "__main__":
    main()
