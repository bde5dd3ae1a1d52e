"""MiB's losses: time and peak memory of the fused pass against a plain transcription of the equations.

    python benchmarks/losses.py [--json] [--small] [--batch 6] [--channels 151] [--known 101] [--size 512]
                                [--rounds 3] [--repeats 3] [--threads N] [--device cpu]

One measurement is the forward and backward pass of unbiased cross entropy + 10 * unbiased distillation in float32. Each
runs in a process of its own, whose peak resident set (ru_maxrss; on a GPU max_memory_allocated) is read at its end.
``beyond_inputs_bytes`` leaves out what was there before the first pass: torch itself, logits, teacher's logits,
targets; ``beyond_inputs_in_logits`` is that in units of the logits' size, where the gradient alone is 1. The processes
take turns, ratios are taken turn by turn, and medians are printed with the smallest and largest ratio beside them.

``fused`` is ``pixel_losses`` (one gradient), ``apart`` calls the two losses one after the other, ``plain`` is below.
``--small`` is quickly done: B=2, C=31, K=21, 128x128.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sapwood.functional.segmentation import pixel_losses, unbiased_cross_entropy, unbiased_distillation

STRENGTH = 10.0
VOID = 255
TOLERANCE = 1e-4  # float32 sums over many pixels
SIDES = ("plain", "apart", "fused")
SMALL = {"batch": 2, "channels": 31, "known": 21, "size": 128}


def plain_cross_entropy(logits: Tensor, target: Tensor, known: int) -> Tensor:
    """-log sum_{c < K} p_c where the target is old, else -log p_target; mean over the valid pixels."""
    log_p = F.log_softmax(logits, 1)
    background = torch.logsumexp(log_p[:, :known], 1, keepdim=True)
    shifted = torch.where(target == VOID, VOID, (target - known + 1).clamp(min=0))
    return F.nll_loss(torch.cat([background, log_p[:, known:]], 1), shifted, ignore_index=VOID)


def plain_distillation(logits: Tensor, teacher: Tensor) -> Tensor:
    """-(1/K) sum_{c < K} q_c l_c, the new channels added to the background; mean over all pixels."""
    known = teacher.shape[1]
    log_p = F.log_softmax(logits, 1)
    background = torch.logsumexp(torch.cat([log_p[:, :1], log_p[:, known:]], 1), 1, keepdim=True)
    log_old = torch.cat([background, log_p[:, 1:known]], 1)
    return -(F.softmax(teacher, 1) * log_old).sum(1).mean() / known


def loss(side: str, logits: Tensor, target: Tensor, teacher: Tensor) -> Tensor:
    """The sum of both losses, as one side computes it."""
    known = teacher.shape[1]
    if side == "plain":
        entropy, distilled = plain_cross_entropy(logits, target, known), plain_distillation(logits, teacher)
    elif side == "apart":
        entropy = unbiased_cross_entropy(logits, target, known)
        distilled = unbiased_distillation(logits, teacher)
    else:
        entropy, distilled = pixel_losses(logits, target, teacher, old_classes=known)
    return entropy + STRENGTH * distilled


def peak(device: torch.device) -> int:
    """Bytes at the highest so far."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(side: str, options: argparse.Namespace) -> dict[str, Any]:
    """One process' measurement."""
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    rng = torch.Generator(device).manual_seed(0)
    shape = (options.batch, options.channels, options.size, options.size)
    logits = torch.randn(shape, generator=rng, device=device)
    teacher = torch.randn((shape[0], options.known, *shape[2:]), generator=rng, device=device)
    target = torch.randint(0, options.channels, (shape[0], *shape[2:]), generator=rng, device=device)
    target[:, : options.size // 16] = VOID
    logits.requires_grad_()
    before = peak(device)
    seconds, value, norm = [], 0.0, 0.0
    for _ in range(options.repeats + 1):
        began = time.perf_counter()
        total = loss(side, logits, target, teacher)
        (gradient,) = torch.autograd.grad(total, logits)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        value, norm = float(total.detach()), float(torch.linalg.vector_norm(gradient))
        del total, gradient
    highest = peak(device)
    return {
        "seconds": statistics.median(seconds[1:]),  # the first pass warms up
        "peak_bytes": highest,
        "beyond_inputs_bytes": highest - before,
        "beyond_inputs_in_logits": (highest - before) / (logits.numel() * logits.element_size()),
        "loss": value,
        "gradient_norm": norm,
    }


def child(side: str, options: argparse.Namespace) -> dict[str, Any]:
    """``measure`` in a fresh process."""
    arguments = [f"--{name}={getattr(options, name)}" for name in ("batch", "channels", "known", "size", "repeats")]
    arguments += [f"--threads={options.threads}", f"--device={options.device}", f"--side={side}"]
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed, perhaps for want of memory; try --small")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """All sides in turn, and what plain costs over the others."""
    turns = [{side: child(side, options) for side in SIDES} for _ in range(options.rounds)]
    for name in ("loss", "gradient_norm"):
        values = [turns[0][side][name] for side in SIDES]
        if max(values) > min(values) * (1 + TOLERANCE):
            raise SystemExit(f"the sides compute different things: {name} {values}")
    names = ("batch", "channels", "known", "size", "rounds", "repeats", "device")
    found: dict[str, Any] = {"settings": {name: getattr(options, name) for name in names}}
    found["settings"]["threads"] = options.threads or torch.get_num_threads()
    for side in SIDES:
        found[side] = {name: statistics.median(turn[side][name] for turn in turns) for name in turns[0][side]}
    for side in SIDES[1:]:
        ratios: dict[str, Any] = {}
        for name in ("seconds", "peak_bytes", "beyond_inputs_bytes"):
            each = [turn["plain"][name] / turn[side][name] for turn in turns]
            ratios[name] = round(statistics.median(each), 3)
            ratios[f"{name}_range"] = [round(min(each), 3), round(max(each), 3)]
        found[f"plain_over_{side}"] = ratios
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--small", action="store_true", help="a quick try; the sizes given are then left aside")
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--channels", type=int, default=151)
    parser.add_argument("--known", type=int, default=101)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch takes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.small:
        vars(options).update(SMALL)
    if options.side:
        sys.stdout.write(json.dumps(measure(options.side, options)) + "\n")
        return
    found = compare(options)
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    for part, values in found.items():
        for name, value in values.items():
            sys.stdout.write(
                f"{part} {name}: {value:.6g}\n" if isinstance(value, float) else f"{part} {name}: {value}\n"
            )


if __name__ == "__main__":
    main()
