"""Learning from large folders: what grows with the number of pictures, and what a head of many classes takes.

    python benchmarks/large.py [--features 10000,100000,400000] [--turns 3] [--dim 384] [--rows 1000000]
                               [--classes 10000] [--json]

Three claims, each in a process of its own, whose largest resident size is what it took: (a) the ridge and prototype
heads learn from made-up features that are handed over in blocks, in 100 classes; the ratio of the peaks says what grows
with their number, medians over turns in which each number has a process of its own; (b) a CSV of so many rows is read;
(c) a ridge head of so many classes is fitted on ten pictures of each, solved, and asked. The peak counts from before
the features are made, with the libraries loaded.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from sapwood.backbones.base import Tokens
from sapwood.data.sources import read_data
from sapwood.heads import HEADS, Features, PooledHead, RidgeHead

FEW, FILES = 100, 1000
HELD = 10  # a tenth of the pictures is held out


class MadeUp:
    """Features [n, d] that are computed when they are read: a mean a class, and noise."""

    device = torch.device("cpu")

    def __init__(self, targets: Tensor, dim: int, seed: int) -> None:
        self.shape = torch.Size([len(targets), dim])
        self.targets, self.seed = targets, seed
        rng = torch.Generator().manual_seed(0)
        self.means = torch.randn(int(targets.max()) + 1, dim, generator=rng)
        self.noise = torch.randn(8191, dim, generator=rng)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        rows = torch.arange(*index.indices(len(self))) if isinstance(index, slice) else index
        signs = 1 - 2 * ((rows * 40503 + self.seed) % 97 % 2)
        noise = self.noise[(rows * 2654435761 + self.seed) % len(self.noise)] * signs[:, None]
        return self.means[self.targets[rows]] + 3 * noise


def peak() -> float:
    """Largest resident size of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def made(name: str, count: int, classes: int, dim: int) -> tuple[PooledHead, Features, Features]:
    """A head without pictures, and those to learn."""
    kind = HEADS[name]
    head = kind(kind.Config(), dim)
    assert isinstance(head, PooledHead)
    head.grow(classes, torch.Generator().manual_seed(0))
    train, held = torch.arange(count) % classes, torch.arange(count // HELD) % classes
    rows = cast("Tensor", MadeUp(train, dim, 1)), cast("Tensor", MadeUp(held, dim, 2))  # read like tensors
    return head, Features(rows[0], train), Features(rows[1], held)


def fit(name: str, count: int, classes: int, dim: int) -> dict[str, float]:
    """Seconds and MiB of learning a round."""
    head, train, held = made(name, count, classes, dim)
    before, began = peak(), time.process_time()
    facts = head.fit(train, held, torch.Generator().manual_seed(0))
    fitted = time.process_time()
    head.learn_known(train, held, stays=True)
    found = {"fit": fitted - began, "known": time.process_time() - fitted, "peak": peak(), "before": before}
    if isinstance(head, RidgeHead):
        began = time.process_time()
        head.solve()
        found["solve"] = time.process_time() - began
    x, times = held.x[0:32], []
    for _ in range(20):
        began = time.process_time()
        head(Tokens(x, x.new_empty(32, 0, dim), (0, 0)))
        times.append(time.process_time() - began)
    return found | {"predict": statistics.median(times) / 32, "accuracy": facts["validation_accuracy"]}


def read(count: int, folder: Path) -> dict[str, float]:
    """Seconds and MiB of reading a CSV of so many rows, over a thousand files."""
    names = [f"photos/n{number % 50:05d}/picture_{number:08d}.jpeg" for number in range(FILES)]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    with (folder / "list.csv").open("w") as file:
        file.write("path,label\n")
        file.writelines(f"{names[row % FILES]},class {row % FILES:05d}\n" for row in range(count))
    before, began = peak(), time.process_time()
    pictures = read_data(folder / "list.csv")
    seconds = time.process_time() - began
    held = getattr(pictures, "nbytes", 0) / 2**20
    return {"seconds": seconds, "held": held, "peak": peak(), "before": before, "bytes": held * 2**20 / count}


def apart(*words: object) -> dict[str, float]:
    """What a process of its own measures."""
    command = [sys.executable, __file__, "--part", *map(str, words)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def growth(name: str, counts: list[int], turns: int, dim: int) -> dict[str, Any]:
    """What a head takes for so many features: a row a count, and the ratios of its peak to that of the first."""
    found = [[apart(name, count, FEW, dim) for count in counts] for _ in range(turns)]
    rows, ratios, ranges = {}, [], []
    for place, count in enumerate(counts):
        runs = [turn[place] for turn in found]
        rows[str(count)] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        over = [turn[place]["peak"] / turn[0]["peak"] for turn in found]
        ratios.append(statistics.median(over))
        ranges.append([min(over), max(over)])
    return {"rows": rows, "ratios": ratios, "ranges": ranges}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--features", type=lambda text: list(map(int, text.split(","))), default=[10**4, 10**5, 4 * 10**5]
    )
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=10_000)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.part:
        what, *rest = options.part
        with tempfile.TemporaryDirectory() as name:
            found = read(int(rest[0]), Path(name)) if what == "read" else fit(what, *map(int, rest))
        sys.stdout.write(json.dumps(found))
        return
    heads = {name: growth(name, options.features, options.turns, options.dim) for name in ("ridge", "prototype")}
    result: dict[str, Any] = {"heads": heads}
    result["manifest"] = apart("read", options.rows)
    result["classes"] = apart("ridge", 10 * options.classes, options.classes, options.dim)
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")
        return
    for name, measured in result["heads"].items():
        for (count, row), ratio in zip(measured["rows"].items(), measured["ratios"], strict=True):
            sys.stdout.write(
                f"{name} over {count} features: {row['peak']:.0f} MiB ({row['peak'] - row['before']:.0f} above the "
                f"libraries), ratio {ratio:.2f}; {row['fit'] + row['known']:.1f} s\n"
            )
    row = result["manifest"]
    sys.stdout.write(
        f"manifest of {options.rows} rows: {row['seconds']:.1f} s, {row['held']:.0f} MiB held "
        f"({row['bytes']:.0f} bytes a picture), peak {row['peak'] - row['before']:.0f} MiB above the libraries\n"
    )
    row = result["classes"]
    sys.stdout.write(
        f"ridge of {options.classes} classes: {row['fit']:.1f} s to fit on {10 * options.classes} pictures, "
        f"{row['known']:.1f} s for what known pictures are like, {row['solve']:.2f} s to solve, "
        f"{1e3 * row['predict']:.2f} ms a prediction, peak {row['peak']:.0f} MiB\n"
    )


if __name__ == "__main__":
    main()
