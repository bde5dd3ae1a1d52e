"""What inference costs once a state has left: beside the bare backbone, and in ONNX Runtime beside torch.

    python benchmarks/exports.py [--json] [--backbone random:dinov2-s14] [--size 112] [--batch 8] [--turns 21]

A state learns ten classes of made-up pictures with LoRA on q and v (seq-lora), is exported, and opened by stock tools.
``merged_over_bare`` is a forward of the stock classifier in the merged folder over one of the library's own encoder
with its weights as they came; ``onnx_over_torch`` is ONNX Runtime over the merged network in torch's eager mode. Each
turn runs the two sides one after the other, in turning order; ratios are taken turn by turn, and the median and the
quartiles are given. All sides run in as many threads as torch takes (OMP_NUM_THREADS).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from exports_onnx import onnx_ratio
from transformers import AutoModelForImageClassification

from sapwood.backbones import create_backbone
from sapwood.export import export
from sapwood.learner import Learner

CLASSES, PICTURES = 10, 2
Side = Callable[[], Any]


def taught(folder: Path, backbone: str, size: int) -> Path:
    """A state that has learned one round; one step changes the weights, and their values cost nothing."""
    random = np.random.default_rng(0)
    pairs = [
        (random.integers(0, 256, (size, size, 3), np.uint8), f"class {number}")
        for number in range(CLASSES)
        for _ in range(PICTURES)
    ]
    learner = Learner.create(
        folder / "state", method="seq-lora", kind="classification", backbone=backbone, image_size=size
    )
    learner.learn(pairs, task="made up", training={"epochs": 1, "precision": "fp32"})
    return folder / "state"


def seconds(function: Side) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def ratios(over: Side, under: Side, turns: int) -> dict[str, Any]:
    """Median and quartiles of over / under, turn by turn, after one call of each."""
    over(), under()
    found, times = [], []
    for turn in range(turns):
        first, second = (over, under) if turn % 2 else (under, over)
        one, two = seconds(first), seconds(second)
        found.append(one / two if turn % 2 else two / one)
        times.append(one if turn % 2 else two)
    low, middle, high = statistics.quantiles(found, n=4) if turns > 1 else (found[0],) * 3
    return {
        "ratio": round(middle, 4),
        "quartiles": [round(low, 4), round(high, 4)],
        "milliseconds": round(1000 * statistics.median(times), 2),
    }


def merged_ratio(state: Path, folder: Path, pixels: torch.Tensor, turns: int) -> dict[str, Any]:
    """The merged folder's classifier over the bare encoder."""
    made = export(state, folder / "merged", "merged")
    model = AutoModelForImageClassification.from_pretrained(made.path).eval()
    info = Learner.open(state, device="cpu").record["backbone"]
    bare = create_backbone(info["name"], pixels.shape[-1], revision=info["revision"]).get_submodule("model")

    @torch.no_grad()
    def merged() -> None:
        model(pixel_values=pixels)

    @torch.no_grad()
    def plain() -> None:
        bare(pixel_values=pixels)

    return ratios(merged, plain, turns) | {"max_difference": made.max_difference}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--backbone", default="random:dinov2-s14")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--turns", type=int, default=21)
    options = parser.parse_args()
    drawn = torch.randn(options.batch, 3, options.size, options.size, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        state = taught(folder, options.backbone, options.size)
        found = {"merged_over_bare": merged_ratio(state, folder, drawn, options.turns)}
        found["onnx_over_torch"] = onnx_ratio(state, folder, drawn, options.turns)
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    for side, facts in found.items():
        for key, value in facts.items():
            sys.stdout.write(f"{side} {key}: {value}\n")


if __name__ == "__main__":
    main()
