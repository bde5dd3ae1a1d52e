"""Peak memory of training steps of seq-lora, against the same steps through PEFT.

    python benchmarks/memory.py [--json] [--backbone random:dinov2-s14] [--size 112] [--batch 32] [--steps 3]
                                [--precision fp32] [--turns 3]

The steps of ``step.py``. Each side runs in processes of its own, in turn; what counts is how far the peak of the
process (ru_maxrss) lies above what it held with all libraries loaded and before its model was made.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from typing import Any

import psutil
import torch
from step import batch_of, our_step, peft_step
from telling import tell

MB = 2**20


def measure(options: argparse.Namespace) -> dict[str, float]:
    """What one side takes, in MiB; this process ends afterwards."""
    import peft  # noqa: F401  (both sides load the same libraries)

    torch.set_num_threads(1)
    batch = batch_of(options.size, options.batch)
    side = {"ours": lambda *given: our_step(*given)[0], "peft": peft_step}[options.side]
    side("random:dinov2-tiny", *batch_of(28, 2), options.precision)()  # loads what the first step loads
    before = psutil.Process().memory_info().rss
    step = side(options.backbone, *batch, options.precision)
    for _ in range(options.steps):
        step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"above": (peak - before) / MB, "peak": peak / MB}


def child(side: str, given: list[str]) -> dict[str, Any]:
    """``measure`` in a process of its own."""
    command = [sys.executable, __file__, *given, "--side", side]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--backbone", default="random:dinov2-s14", help="one whose layers PEFT finds: a DINOv2")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--side", choices=["ours", "peft"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        tell(measure(options), True)
        return
    given = [each for each in sys.argv[1:] if each != "--json"]
    turns = [(child("ours", given), child("peft", given)) for _ in range(options.turns)]
    ratios = [ours["above"] / theirs["above"] for ours, theirs in turns]
    found = {
        "ours_over_peft": round(statistics.median(ratios), 3),
        "ours_over_peft_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "ours_mib": round(statistics.median(ours["above"] for ours, _ in turns), 1),
        "peft_mib": round(statistics.median(theirs["above"] for _, theirs in turns), 1),
    }
    tell(found, options.json)


if __name__ == "__main__":
    main()
