"""What the number of tasks costs: training step, inference and bytes after few rounds and after many.

    python benchmarks/tasks.py [--json] [--methods clora,c-lora,…] [--tasks 1,10,50] [--turns 15]
                               [--backbone random:dinov2-s14] [--image-size 84] [--batch 8]

The rounds are synthetic, so that the fiftieth is reached at once: each brings a few random pictures, layer inputs that
take seven directions no earlier round took, and factors that are drawn instead of trained. T is the number of rounds,
the one being learned among them; the head has a row for every round from the start, so that only the adapter differs.

A step is forward, cross-entropy with the adapter's penalty, backward, optimiser and projection, without a teacher.
``step / first`` is against the same method at the smallest T, ``step / seq-lora`` against LoRA's step in its first
round. Inference is a prediction of the whole batch, as the network stands after T rounds and with everything merged
into the weights, against backbone and head alone. Each method runs in a process of its own, all its sides in turns
whose order rotates; ratios are taken turn by turn, and beside their median stand the smallest and the largest. Times
are the processor's, of one thread: hardly changed by other work on a busy machine. GMACs are those of one call.

Resident bytes are all distinct tensors that the adapter holds after T rounds, its past among them; ``weights beside``
are second weights of adapted layers, into which the past is folded. Stored bytes are the files of tensors: that of
round T, and all that opening the state reads of the adapter.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from synthetic import grow, pictures, share, twin
from torch import Tensor
from torch.nn import functional as F

from sapwood.adapters import ADAPTERS
from sapwood.methods import find_method
from sapwood.network import Network
from sapwood.operations import counted
from sapwood.settings import TrainingConfig
from sapwood.training import build_optimizer

METHODS = ("clora", "c-lora", "inflora", "o-lora", "sd-lora", "dual-lora", "color")
REFERENCE = "seq-lora"
FLAT = ("clora", "c-lora", "inflora")
STEP, INFERENCE, AGAINST = 1.05, 1.02, 1.0
SETTINGS = ("tasks", "turns", "backbone", "image_size", "batch")


def step_of(network: Network, images: Tensor, targets: Tensor, config: TrainingConfig) -> Callable[[], None]:
    """One training step."""
    optimizer = build_optimizer(network.trainable(), config)

    def step() -> None:
        loss = F.cross_entropy(network(images).logits, targets)
        if (penalty := network.adapter.penalty()) is not None:
            loss = loss + penalty
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        network.adapter.after_step()

    return step


def prediction_of(network: Network, images: Tensor) -> Callable[[], None]:
    """One prediction."""

    def predict() -> None:
        with torch.no_grad():
            network.predict(images)

    return predict


def gmacs(function: Callable[[], None]) -> float:
    """Multiply-accumulates of a call, in units of 1e9; it warms up, too."""
    with counted() as operations:
        function()
    return operations.gmacs


def in_turns(functions: Mapping[str, Callable[[], None]], turns: int) -> dict[str, list[float]]:
    """Processor time of each function in each turn; every turn begins with another one."""
    names, found = list(functions), dict[str, list[float]]()
    for turn in range(turns):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            began = time.process_time()
            functions[name]()
            found.setdefault(name, []).append(time.process_time() - began)
    return found


def measure(method: str, options: argparse.Namespace) -> dict[str, Any]:
    """One method, in this process."""
    torch.set_num_threads(1)
    counts = sorted(int(count) for count in options.tasks.split(","))
    shape = {"backbone": options.backbone, "size": options.image_size, "classes": counts[-1]}
    reference, grown = grow(REFERENCE, counts[:1], **shape), grow(method, counts, **shape)
    images = pictures(options.batch, options.image_size, seed=-1)
    targets = torch.arange(options.batch) % counts[-1]
    first = next(iter(reference.learning.values()))
    share(first, next(iter(grown.learning.values())))
    bare = twin(first)
    for layer in bare.adapted:
        layer.live = False

    sides = {"reference": step_of(first, images, targets, reference.training), "bare": prediction_of(bare, images)}
    sides |= {f"step {T}": step_of(each, images, targets, grown.training) for T, each in grown.learning.items()}
    sides |= {f"inference {T}": prediction_of(network, images) for T, network in grown.finished.items()}
    sides |= {f"merged {T}": prediction_of(network, images) for T, network in grown.merged.items()}
    operations = {name: gmacs(side) for name, side in sides.items()}
    gc.freeze()
    times = in_turns(sides, options.turns)

    def ratios(side: str, base: str) -> list[float] | None:
        return [one / other for one, other in zip(times[side], times[base], strict=True)] if side in times else None

    rounds = {
        str(T): {
            "step_seconds": statistics.median(times[f"step {T}"]),
            "step_gmacs": operations[f"step {T}"],
            "inference_gmacs": operations[f"inference {T}"],
            "step_over_first": ratios(f"step {T}", f"step {counts[0]}"),
            "step_over_reference": ratios(f"step {T}", "reference"),
            "inference_over_bare": ratios(f"inference {T}", "bare"),
            "merged_over_bare": ratios(f"merged {T}", "bare"),
            "resident_bytes": grown.resident[T - 1],
            "beside_bytes": grown.beside[T - 1],
            "stored_bytes": grown.stored[T - 1],
            "stored_in_all": grown.stored_in_all(T),
        }
        for T in counts
    }
    return {"growth": ADAPTERS[find_method(method).adapter].growth, "rounds": rounds}


def child(method: str, options: argparse.Namespace) -> dict[str, Any]:
    """``measure`` in a fresh process."""
    arguments = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in SETTINGS]
    done = subprocess.run(
        [sys.executable, __file__, *arguments, f"--method={method}"], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"{method} failed")
    return dict(json.loads(done.stdout))


def compare(methods: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The ratios that have a limit."""
    found = []
    for method in (method for method in FLAT if method in methods):
        rounds = methods[method]["rounds"]
        first, last = min(rounds, key=int), max(rounds, key=int)
        most = rounds[last]
        found.append((f"`{method}`: step({last}) / step({first})", STEP, most["step_over_first"]))
        found.append((f"`{method}`: inference({last}) merged / bare backbone", INFERENCE, most["merged_over_bare"]))
        if method == "inflora" and "10" in rounds:
            found.append((f"`inflora`: step(10) / `{REFERENCE}`'s", AGAINST, rounds["10"]["step_over_reference"]))
    return [{"name": name, "limit": limit, "ratios": ratios} for name, limit, ratios in found]


def shown(ratios: list[float] | None) -> str:
    """The median, the smallest and the largest."""
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f})" if ratios else "–"


def table(methods: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """Lines of Markdown: what T rounds cost, what the adapters say of it, and the targets."""
    ratios = ("step_over_first", "step_over_reference", "inference_over_bare", "merged_over_bare")
    sizes = ("resident_bytes", "beside_bytes", "stored_bytes", "stored_in_all")
    yield (
        "| method | T | step, GMACs | step / first | step / seq-lora | inference, GMACs | inference / bare "
        "| merged / bare | resident MB | weights beside, MB | stored by round T, MB | stored in all, MB |"
    )
    yield "|---" * 12 + "|"
    for method, found in methods.items():
        for rounds, row in found["rounds"].items():
            times = [shown(row[name]) for name in ratios]
            times = [f"{row['step_gmacs']:.2f}", *times[:2], f"{row['inference_gmacs']:.2f}", *times[2:]]
            cells = [f"`{method}`", rounds, *times, *(f"{row[name] / 1e6:.2f}" for name in sizes)]
            yield f"| {' | '.join(cells)} |"
    yield from ("", "| method | growth, as declared |", "|---|---|")
    yield from (f"| `{method}` | {found['growth']} |" for method, found in methods.items())
    yield from ("", "| ratio | target | measured |", "|---|---|---|")
    for ratio in compare(methods):
        missed = "" if statistics.median(ratio["ratios"]) <= ratio["limit"] else ", **missed**"
        yield f"| {ratio['name']} | ≤ {ratio['limit']:.2f} | {shown(ratio['ratios'])}{missed} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--tasks", default="1,10,50", help="numbers of rounds")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--backbone", default="random:dinov2-s14")
    parser.add_argument("--image-size", type=int, default=84)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--method", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.method:
        sys.stdout.write(json.dumps(measure(options.method, options)) + "\n")
        return
    methods = {method: child(method, options) for method in options.methods.split(",")}
    settings = {name: getattr(options, name) for name in SETTINGS}
    found = {"settings": settings, "methods": methods, "targets": compare(methods)}
    sys.stdout.write((json.dumps(found) if options.json else "\n".join(table(methods))) + "\n")


if __name__ == "__main__":
    main()
