"""One method, one stream, one seed: a row of numbers, and what is needed to get it again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sapwood.assembly import Overrides, new_record
from sapwood.backbones import create_backbone
from sapwood.data.streams import Stream
from sapwood.functional.metrics import (
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
    last_accuracy,
    learning_accuracy,
)
from sapwood.history import libraries
from sapwood.kinds import KINDS
from sapwood.kinds.base import Size
from sapwood.learner import Learner
from sapwood.methods import find_method
from sapwood.progress import Progress
from sapwood.state import State


@dataclass(frozen=True)
class Run:
    """What is run.

    Attributes:
        method: a recipe or a composition.
        backbone: by name.
        seed: of training; the order of classes belongs to the stream.
        image_size: pixels of a view: a side, or (height, width).
        head: another head than the recipe's.
        settings: per part, over the recipe's.
        joint_at_end: train methods that need all data only once, on everything; the average over rounds is then not
            measured.
    """

    method: str
    backbone: str
    seed: int
    image_size: Size
    head: str | None = None
    settings: Overrides = field(default_factory=dict)
    joint_at_end: bool = False

    @property
    def label(self) -> str:
        """Name of the row: the method, and the head if it is another than the recipe's."""
        return self.method if self.head is None else f"{self.method}/{self.head}"


Matrix = list[list[float | None]]
Memory = dict[str, Tensor]


def run(
    stream: Stream, wanted: Run, out: Path, *, progress: Progress | None = None, memory: Memory | None = None
) -> dict[str, Any]:
    """Learn the stream round by round and write ``out``; a run that was cut short goes on where it stopped.

    The test pictures of all classes so far are measured after each round; they choose nothing. A method that needs all
    data is trained anew on the union of the rounds so far, after each round, with as many epochs over it.

    Args:
        stream: rounds with test pictures.
        wanted: method, backbone, seed and settings.
        out: JSON file, written atomically at the end; if it is there, it is read instead of learning again.
        progress: listens to what happens.
        memory: features of frozen backbones, shared by several runs over the same pictures.

    Returns:
        The row: measures as fractions, costs, and everything that reproduces it.
    """
    if out.exists():
        return dict(json.loads(out.read_text("utf-8")))
    out.parent.mkdir(parents=True, exist_ok=True)
    work = out.with_suffix(".work")
    method = find_method(wanted.method, wanted.head, stream.kind)
    progress = progress or Progress()
    learn = _jointly if method.all_data else _in_sequence
    row = _row(stream, wanted, *learn(stream, wanted, work, progress, memory))
    aside = out.with_suffix(".tmp")
    aside.write_text(json.dumps(row, indent=1) + "\n", "utf-8")
    os.replace(aside, out)
    shutil.rmtree(work)
    return row


def _open(path: Path, kind: str, wanted: Run, memory: Memory | None) -> Learner:
    if State.exists(path):
        return Learner(State.open(path), memory=memory)
    method = replace(find_method(wanted.method, wanted.head, kind), all_data=False)
    backbone = create_backbone(wanted.backbone, wanted.image_size)
    size = KINDS[kind].view_size(wanted.image_size, backbone.info)
    record = new_record(backbone, method, size, wanted.seed, wanted.settings)
    return Learner(State.create(path, record), memory=memory)


def _in_sequence(
    stream: Stream, wanted: Run, work: Path, progress: Progress, memory: Memory | None
) -> tuple[Matrix, list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """The matrix, the last record, and what was measured after each round."""
    learner = _open(work, stream.kind, wanted, memory)
    for index in range(len(learner.record["tasks"]), len(stream.rounds)):
        part = stream.rounds[index]
        learner.learn(part.train, task=part.name, test=stream.tests(index), progress=progress)
    return learner.accuracy_, [learner.record], [task["measured"] for task in learner.record["tasks"]]


def _jointly(
    stream: Stream, wanted: Run, work: Path, progress: Progress, memory: Memory | None
) -> tuple[Matrix, list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """The same of a method that is trained anew on everything so far; the last record of each."""
    accuracy: Matrix = []
    records: list[Mapping[str, Any]] = []
    summaries: list[Mapping[str, Any]] = []
    last = len(stream.rounds) - 1
    for index in range(last + 1):
        if wanted.joint_at_end and index < last:
            accuracy.append([None] * (index + 1))
            summaries.append({})
            continue
        learner = _open(work / f"upto-{index + 1}", stream.kind, wanted, memory)
        tests = stream.tests(index)
        if not learner.record["tasks"]:
            learner.learn(stream.joint(index), task="joint", test=tests, progress=progress)
        # The rounds as the stream cuts them, which this state has not seen as such.
        cut = [{"classes": names, "annotated": names} for names in _new_classes(stream)[: index + 1]]
        confusion = torch.tensor(learner.evaluate(tests).confusion)
        accuracy.append(learner.kind.cells(confusion, learner.classes_, cut))
        summaries.append(learner.kind.summary(confusion, learner.classes_, cut))
        records.append(learner.record)
    return accuracy, records, summaries


def _new_classes(stream: Stream) -> list[list[str]]:
    """The classes that each round shows for the first time."""
    seen: set[str] = set()
    found = []
    for part in stream.rounds:
        found.append([name for name in part.train.classes if name not in seen])
        seen |= set(part.train.classes)
    return found


def _row(
    stream: Stream,
    wanted: Run,
    accuracy: Sequence[Sequence[float | None]],
    records: Sequence[Mapping[str, Any]],
    summaries: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    record = records[-1]
    tasks = [task for each in records for task in each["tasks"]]
    count = len(stream.rounds)
    square = [[*row, *[None] * (count - len(row))] for row in accuracy]
    # Of pictures the tests of each round, of masks its classes: then a row's mean is that over all of them.
    if stream.kind == "segmentation":
        weights = [len(names) for names in _new_classes(stream)]
    else:
        weights = [len(part.test) for part in stream.rounds]
    return {
        "benchmark": stream.name,
        "method": wanted.label,
        "backbone": wanted.backbone,
        "seed": wanted.seed,
        "order_seed": stream.order_seed,
        "measure": KINDS[stream.kind].measure,
        "last_accuracy": last_accuracy(square, weights),
        **_over_rounds(square, weights),
        "accuracy": square,
        "after_each": list(summaries),
        "classes": list(stream.classes),
        "train_pictures": [len(part.train) for part in stream.rounds],
        "test_pictures": [len(part.test) for part in stream.rounds],
        "trainable_parameters": max(task["trainable_parameters"] for task in tasks),
        "bytes": record["tasks"][-1]["declared_bytes"],
        "train_seconds": sum(task["seconds"] for task in tasks),
        "peak_memory": max(task["peak_memory"] for task in tasks),
        "seconds_per_picture": tasks[-1]["seconds_per_picture"],
        "image_size": wanted.image_size,
        "settings": record["settings"],
        "parts": record["parts"],
        "data_sha256": stream.sha256(),
        "weights_sha256": record["backbone"]["sha256"],
        "head_fits": [task["head_fit"] for task in tasks],
        "threads": record["tasks"][-1]["threads"],
        "device": record["tasks"][-1]["device"],
        "libraries": libraries(),
        "run": asdict(wanted),
    }


def _over_rounds(accuracy: Sequence[Sequence[float | None]], weights: Sequence[int]) -> dict[str, float | None]:
    """Measures that need every round; None where rounds were not measured."""
    measured = all(cell is not None for row, line in enumerate(accuracy) for cell in line[: row + 1])
    return {
        "average_incremental_accuracy": average_incremental_accuracy(accuracy, weights) if measured else None,
        "forgetting": forgetting(accuracy) if measured else None,
        "backward_transfer": backward_transfer(accuracy) if measured else None,
        "learning_accuracy": learning_accuracy(accuracy) if measured else None,
    }
