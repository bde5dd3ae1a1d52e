"""docs/performance.md: every claim on speed and memory, measured here, beside its target.

    make bench                                    (or: python benchmarks/page.py [--again step,learn] [--only step])

Each run is a script of this folder with ``--json``; what it gave is kept in docs/results/performance, with the machine
it ran on, and a run whose file is there is not done again unless asked for. The page is written anew from those files.
Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
KEPT, PAGE = ROOT / "docs" / "results" / "performance", ROOT / "docs" / "performance.md"

RUNS = {
    "step": "step.py --precisions fp32",
    "step-bf16": "step.py --precisions bf16 --rounds 1",
    "learn": "learn.py",
    "training": "training.py --turns 5",
    "objectives": "objectives.py",
    "losses": "losses.py",
    "tasks": "tasks.py --methods clora,c-lora,inflora --tasks 1,10,100",
    "growing": "tasks.py --methods o-lora,sd-lora,dual-lora,color --turns 7",
    "hundred": "hundred.py",
    "processes": "processes.py",
    "exports": "exports.py",
    "serving": "serving.py --minutes 10",
}
Numbers = list[float]


@dataclass(frozen=True)
class Claim:
    """A line of the page: ``value`` finds the numbers (their median counts) in what the run gave."""

    what: str
    run: str
    value: Callable[[Any], Numbers]
    target: float | None = None
    least: bool = False
    unit: str = ""

    def shown(self, found: Any) -> str:
        """The median, smallest and largest, and whether the target was missed."""
        numbers = self.value(found)
        middle = statistics.median(numbers)
        text = f"{middle:.3g}" if self.unit else f"{middle:.3f}"
        if len(numbers) > 1:
            text += f" ({min(numbers):.3f}–{max(numbers):.3f})"
        missed = self.target is not None and (middle < self.target if self.least else middle > self.target)
        return f"{text}{self.unit}" + (", **missed**" if missed else "")

    def wanted(self) -> str:
        """The target in words."""
        return "–" if self.target is None else f"{'≥' if self.least else '≤'} {self.target:g}"


def ranged(found: Any, name: str) -> Numbers:
    """A median that stands beside its range."""
    low, high = found[f"{name}_range"]
    return [low, found[name], high]


def last(rounds: dict[str, Any]) -> Any:
    """The row of the largest number of rounds."""
    return rounds[max(rounds, key=int)]


def _flat(method: str) -> list[Claim]:
    return [
        Claim(
            f"training step after 100 rounds / after one, `{method}` (ViT-S, 84 px, batch 8, synthetic rounds)",
            "tasks",
            lambda found: last(found[method]["rounds"])["step_over_first"],
            1.05,
        ),
        Claim(
            f"merged inference after 100 rounds / the bare backbone, `{method}`",
            "tasks",
            lambda found: last(found[method]["rounds"])["merged_over_bare"],
            1.02,
        ),
    ]


def _grown(method: str) -> Claim:
    return Claim(
        f"training step after 50 rounds / after one, `{method}`, which grows",
        "growing",
        lambda found: last(found[method]["rounds"])["step_over_first"],
    )


def _objective(name: str) -> Claim:
    return Claim(
        f"training step of `clora+{name}` / the forwards that it needs (ViT-S, 168 × 224 px, batch 8)",
        "objectives",
        lambda found: found[name]["ratios"],
        1.15 if name == "mib" else 1.3,
    )


def _hundred(method: str) -> list[Claim]:
    return [
        Claim(
            f"round 100 of 100 with ten classes each / round 3, whole `learn`, `{method}` (tiny backbone)",
            "hundred",
            lambda found: [found[method]["100"]["seconds"] / found[method]["3"]["seconds"]],
        ),
        Claim(
            f"resident memory after round 100 / after round 3, `{method}`",
            "hundred",
            lambda found: [found[method]["100"]["resident"] / found[method]["3"]["resident"]],
        ),
    ]


CLAIMS = (
    Claim(
        "training step of `seq-lora` / two frozen forwards, ViT-S, 112 px, batch 32, fp32",
        "step",
        lambda found: ranged(found["fp32"], "step_over_two_forwards"),
        1.10,
    ),
    Claim(
        "the same step through PEFT / ours", "step", lambda found: ranged(found["fp32"], "peft_step_over_ours"), 1, True
    ),
    Claim(
        "step / two frozen forwards, bf16",
        "step-bf16",
        lambda found: ranged(found["bf16"], "step_over_two_forwards"),
        1.08,
    ),
    Claim(
        "the same through PEFT under autocast / ours, bf16",
        "step-bf16",
        lambda found: ranged(found["bf16"], "peft_step_over_ours"),
        1.4,
        True,
    ),
    Claim(
        "`learn` as a whole / its bare steps, JPEG files", "learn", lambda found: [found["learn_over_bare_steps"]], 1.10
    ),
    Claim("a round's files / declared bytes", "learn", lambda found: [found["files_over_declared"]], 1.05),
    *(_objective(name) for name in ("mib", "lwf", "ilt", "plop", "rcil", "sats", "ssul", "dkd", "finetune", "ewc")),
    Claim(
        "resident training bytes of `clora+mib` / with a copied teacher",
        "training",
        lambda found: [total(found, "shared") / total(found, "copied")],
        0.55,
    ),
    Claim("the same / `full+mib`", "training", lambda found: [total(found, "shared") / total(found, "full")], 0.30),
    Claim(
        "MiB's plain equations / the fused pass, B = 6, C = 151, 512 × 512: time",
        "losses",
        lambda found: ranged(found["plain_over_fused"], "seconds"),
        1,
        True,
    ),
    Claim("the same: peak memory", "losses", lambda found: ranged(found["plain_over_fused"], "peak_bytes"), 1, True),
    *(claim for method in ("clora", "c-lora", "inflora") for claim in _flat(method)),
    Claim(
        "step of `inflora` in round 10 / of `seq-lora`",
        "tasks",
        lambda found: found["inflora"]["rounds"]["10"]["step_over_reference"],
        1,
    ),
    *(_grown(method) for method in ("o-lora", "sd-lora", "dual-lora", "color")),
    *(claim for method in ("ranpac", "clora", "inflora") for claim in _hundred(method)),
    Claim(
        "two processes / one, pictures a second, same batches, one thread each",
        "processes",
        lambda found: ranged(found, "two_over_one_throughput"),
        1.6,
        True,
    ),
    Claim(
        "inference of a merged export / the bare encoder, ViT-S, 112 px, batch 8",
        "exports",
        lambda found: [found["merged_over_bare"]["ratio"]],
        1.02,
    ),
    Claim("ONNX Runtime / torch, the same", "exports", lambda found: [found["onnx_over_torch"]["ratio"]]),
    Claim(
        "requests a second at 16 clients, in micro-batches / one by one",
        "serving",
        lambda found: found["ratios"],
        1.5,
        True,
    ),
    Claim(
        "ten minutes of load while the server is taught and undone: failed predictions",
        "serving",
        lambda found: [found["failed"] + found["soak"]["failed"]],
        0,
    ),
)


def total(found: Any, side: str) -> float:
    """Resident bytes of a side of ``training.py``."""
    return float(found["sides"][side]["resident"]["total"])


def machine() -> dict[str, Any]:
    """What it was measured on."""
    processor = platform.processor() or platform.machine()
    with open("/proc/cpuinfo", encoding="utf-8") if Path("/proc/cpuinfo").exists() else open(os.devnull) as stream:
        names = [line.split(":", 1)[1].strip() for line in stream if line.startswith(("model name", "flags"))]
    flags = set(" ".join(names).split())
    return {
        "processor": names[0] if names else processor,
        "cores": os.cpu_count(),
        "bf16": bool(flags & {"avx512_bf16", "amx_bf16"}),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }


def measure(name: str) -> None:
    """Do a run and keep what it gave."""
    script, *options = RUNS[name].split()
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {RUNS[name]}\n")
    sys.stdout.flush()
    command = [sys.executable, str(ROOT / "benchmarks" / script), *options, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "benchmarks")
    if done.returncode:
        raise SystemExit(f"{RUNS[name]} failed:\n{done.stderr}")
    kept = {"command": f"python benchmarks/{RUNS[name]}", "machine": machine(), "found": json.loads(done.stdout)}
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n", "utf-8")


def page() -> str:
    """The page, from what is kept."""
    runs = {file.stem: json.loads(file.read_text("utf-8")) for file in sorted(KEPT.glob("*.json"))}
    machines = {json.dumps(run["machine"], sort_keys=True): run["machine"] for run in runs.values()}
    lines = [
        "# Performance",
        "",
        "Written by `make bench` from the files in [`results/performance`](results/performance).",
    ]
    lines += ["What counts are ratios measured in one run; medians, with the smallest and the largest in brackets.", ""]
    for one in machines.values():
        bf16 = "with" if one["bf16"] else "without"
        gpu = f", {one['gpu']}" if one["gpu"] else ""
        lines.append(
            f"Machine: {one['processor']}, {one['cores']} cores, {bf16} bf16 instructions{gpu}; torch {one['torch']}."
        )
    lines += ["", "| what | target | measured | command |", "|---|---|---|---|"]
    for claim in CLAIMS:
        run = runs.get(claim.run)
        shown = "not measured yet" if run is None else claim.shown(run["found"])
        lines.append(f"| {claim.what} | {claim.wanted()} | {shown} | `python benchmarks/{RUNS[claim.run]}` |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(RUNS), help="some runs")
    parser.add_argument("--again", type=lambda text: text.split(","), default=[], help="runs to repeat")
    parser.add_argument("--page", action="store_true", help="only write the page")
    options = parser.parse_args()
    for name in () if options.page else options.only:
        if name in options.again or not (KEPT / f"{name}.json").exists():
            measure(name)
    PAGE.write_text(page(), "utf-8")
    sys.stdout.write(f"{PAGE}\n")


if __name__ == "__main__":
    main()
