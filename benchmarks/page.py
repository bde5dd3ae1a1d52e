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
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from claims import CLAIMS, RUNS

ROOT = Path(__file__).resolve().parents[1]
KEPT, PAGE = ROOT / "docs" / "results" / "performance", ROOT / "docs" / "performance.md"


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
    machines = {_key(run): run["machine"] for run in sorted(runs.values(), key=lambda run: run["machine"]["bf16"])}
    numbers = {key: f" {number}" if len(machines) > 1 else "" for number, key in enumerate(machines, 1)}
    lines = [
        "# Performance",
        "",
        "Written by `make bench` from the files in [`results/performance`](results/performance).",
    ]
    lines += ["What counts are ratios measured in one run; medians, with the smallest and the largest in brackets.", ""]
    for key, one in machines.items():
        bf16 = "with" if one["bf16"] else "without"
        gpu = f", {one['gpu']}" if one["gpu"] else ""
        lines.append(
            f"Machine{numbers[key]}: {one['processor']}, {one['cores']} cores, {bf16} bf16 instructions{gpu}; "
            f"torch {one['torch']}."
        )
    lines += ["", "| what | target | measured | command |", "|---|---|---|---|"]
    for claim in CLAIMS:
        run = runs.get(claim.run)
        shown = "not measured yet" if run is None else claim.shown(run["found"])
        if run is not None and claim.hardware and not run["machine"][claim.hardware]:
            shown += f"; emulated, which says nothing of processors with {claim.hardware} instructions"
        if run is not None and numbers[_key(run)] not in ("", " 1"):
            shown += f"; machine{numbers[_key(run)]}"
        lines.append(f"| {claim.what} | {claim.wanted()} | {shown} | `python benchmarks/{RUNS[claim.run]}` |")
    return "\n".join(lines) + "\n"


def _key(run: dict[str, Any]) -> str:
    return json.dumps(run["machine"], sort_keys=True)


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
