"""One training step of seq-lora, against two frozen forwards and against the same step through PEFT.

    python benchmarks/step.py [--json] [--backbone random:dinov2-s14] [--size 112] [--batch 32] [--rounds 7]
                              [--precisions fp32,bf16]

A DINOv2 with random weights (time does not depend on their values), ViT-S/14 by default, LoRA of rank 16 on q and v of
all blocks, a linear head of ten classes, AdamW. The sides run in turn within one process and the ratios are taken turn
by turn; medians are printed, with the smallest and largest ratio beside them. Our step computes attention in the way
that a round would, which is measured before; the forward is the fused one. PEFT runs as its users run it: autocast for
bf16, the model's default attention, AdamW as it comes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from sapwood.adapters.lora import Lora, LoraConfig
from sapwood.backbones import create_backbone
from sapwood.backbones.attention import attending, fastest_attention
from sapwood.data.transforms import normalise
from sapwood.heads import HEADS
from sapwood.network import Network
from sapwood.settings import TrainingConfig
from sapwood.task import Task
from sapwood.training import build_optimizer

CLASSES = 10


def our_step(
    name: str, images: torch.Tensor, targets: torch.Tensor, precision: str
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """(one training step, one frozen forward) of sapwood."""
    backbone = create_backbone(name, images.shape[1])
    adapter = Lora(LoraConfig(), backbone.sites, backbone.info)
    head = HEADS["linear"](HEADS["linear"].Config(), backbone.info.dim)
    head.grow(CLASSES, torch.Generator().manual_seed(0))
    every = tuple(range(CLASSES))
    adapter.before_task(Task(0, "all", every, every, CLASSES, 0), None)
    network = Network(backbone, adapter, head)
    network.set_precision(precision)
    optimizer = build_optimizer(network.trainable(), TrainingConfig())

    attention = fastest_attention(backbone, len(images))

    def step() -> None:
        with attending(backbone, attention):
            F.cross_entropy(network(images).logits, targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    def forward() -> None:
        with torch.no_grad(), network.bare():
            network.tokens(images)

    return step, forward


def peft_step(name: str, images: torch.Tensor, targets: torch.Tensor, precision: str) -> Callable[[], Any]:
    """One training step of the same model through PEFT."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    backbone = create_backbone(name, images.shape[1])
    info = backbone.info
    config = PeftConfig(r=16, lora_alpha=16, lora_dropout=0.0, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(backbone.model, config)
    model.train()
    head = torch.nn.Linear(info.dim, CLASSES)
    trained = [p for p in model.parameters() if p.requires_grad] + list(head.parameters())
    optimizer = torch.optim.AdamW(trained, lr=5e-4)

    def step() -> None:
        pixels = normalise(images, info.mean, info.std)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(head(model(pixel_values=pixels).pooler_output), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds(function: Callable[[], Any]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def batch_of(size: int, pictures: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Made-up pictures and classes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (pictures, size, size, 3), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, CLASSES, (pictures,), generator=generator)


def measure(precision: str, backbone: str, size: int, pictures: int, rounds: int) -> dict[str, Any]:
    """Ratios of one precision."""
    batch = batch_of(size, pictures)
    step, forward = our_step(backbone, *batch, precision)
    theirs = peft_step(backbone, *batch, precision)
    for function in (forward, step, theirs):
        function()
    turns = [(seconds(forward), seconds(step), seconds(forward), seconds(theirs)) for _ in range(rounds)]
    limit = [ours / (first + second) for first, ours, second, _ in turns]
    peers = [peft / ours for _, ours, _, peft in turns]
    return {
        "step_over_two_forwards": round(statistics.median(limit), 3),
        "step_over_two_forwards_range": [round(min(limit), 3), round(max(limit), 3)],
        "peft_step_over_ours": round(statistics.median(peers), 3),
        "peft_step_over_ours_range": [round(min(peers), 3), round(max(peers), 3)],
        "step_seconds": round(statistics.median(turn[1] for turn in turns), 4),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--backbone", default="random:dinov2-s14", help="one whose layers PEFT finds: a DINOv2")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precisions", default="fp32,bf16")
    options = parser.parse_args()
    shape = (options.backbone, options.size, options.batch, options.rounds)
    found = {name: measure(name, *shape) for name in options.precisions.split(",")}
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    for name, ratios in found.items():
        for key, value in ratios.items():
            sys.stdout.write(f"{name} {key}: {value}\n")


if __name__ == "__main__":
    main()
