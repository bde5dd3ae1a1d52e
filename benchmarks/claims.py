"""What docs/performance.md claims: a run of a script for each line, and where in its JSON the numbers stand."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

RUNS = {
    "step": "step.py --precisions fp32",
    "step-bf16": "step.py --precisions bf16",
    "step-b": "step.py --backbone random:dinov2-b14 --size 224 --batch 8 --rounds 5 --precisions fp32",
    "memory": "memory.py",
    "learn": "learn.py",
    "training": "training.py --turns 5",
    "objectives": "objectives.py",
    "losses": "losses.py",
    "tasks": "tasks.py --methods clora,c-lora,inflora --tasks 1,10,100",
    "inflora": "tasks.py --methods inflora --tasks 10 --turns 61",
    "growing": "tasks.py --methods o-lora,sd-lora,dual-lora,color --turns 7",
    "hundred": "hundred.py",
    "prefix": "prefix.py",
    "large": "large.py",
    "processes": "processes.py",
    "exports": "exports.py",
    "serving": "serving.py --minutes 10",
}
Numbers = list[float]


@dataclass(frozen=True)
class Claim:
    """A line of the page: ``value`` finds the numbers (their median counts) in what the run gave.

    ``hardware`` is a key of ``page.machine`` without which the numbers were emulated.
    """

    what: str
    run: str
    value: Callable[[Any], Numbers]
    target: float | None = None
    least: bool = False
    unit: str = ""
    hardware: str = ""

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
    step = f"training step after 100 rounds / after one, `{method}` (ViT-S, 84 px, batch 8, synthetic rounds)"
    merged = f"merged inference after 100 rounds / the bare backbone, `{method}`"
    return [
        _after_all(step, "tasks", method, "step_over_first", 1.05),
        _after_all(merged, "tasks", method, "merged_over_bare", 1.02),
        _kept("tasks", 100, method),
    ]


def _grown(method: str) -> list[Claim]:
    step = f"training step after 50 rounds / after one, `{method}`, which grows"
    inference = f"inference after 50 rounds / the bare backbone, `{method}`"
    return [
        _after_all(step, "growing", method, "step_over_first"),
        _after_all(inference, "growing", method, "inference_over_bare"),
        _kept("growing", 50, method),
    ]


def _after_all(what: str, run: str, method: str, ratio: str, target: float | None = None) -> Claim:
    return Claim(what, run, lambda found: last(found["methods"][method]["rounds"])[ratio], target)


def _kept(run: str, rounds: int, method: str) -> Claim:
    return Claim(
        f"files that the adapter needs after {rounds} rounds, `{method}`",
        run,
        lambda found: [last(found["methods"][method]["rounds"])["stored_in_all"] / 1e6],
        unit=" MB",
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
        hardware="bf16",
    ),
    Claim(
        "the same through PEFT under autocast / ours, bf16",
        "step-bf16",
        lambda found: ranged(found["bf16"], "peft_step_over_ours"),
        1.4,
        True,
        hardware="bf16",
    ),
    Claim(
        "training step of `seq-lora` / two frozen forwards, ViT-B, 224 px, batch 8, fp32",
        "step-b",
        lambda found: ranged(found["fp32"], "step_over_two_forwards"),
        1.15,
    ),
    Claim(
        "peak memory of steps above the loaded libraries, ours / through PEFT, ViT-S, 112 px, batch 32",
        "memory",
        lambda found: ranged(found, "ours_over_peft"),
        1.05,
    ),
    *(
        Claim(
            f"`learn` as a whole / its bare steps, {count} JPEG files of 640 × 480, 3 epochs",
            "learn",
            lambda found, count=count: [found[count]["learn_over_bare_steps"]],
            1.10,
        )
        for count in ("600", "160")
    ),
    Claim(
        "share of the time of steps that batches are waited for, one process",
        "learn",
        lambda found: [found["600"]["waiting_share"]],
        0.05,
    ),
    Claim("a round's files / declared bytes", "learn", lambda found: [found["160"]["files_over_declared"]], 1.05),
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
        "inflora",
        lambda found: found["methods"]["inflora"]["rounds"]["10"]["step_over_reference"],
        1,
    ),
    *(claim for method in ("o-lora", "sd-lora", "dual-lora", "color") for claim in _grown(method)),
    *(claim for method in ("ranpac", "clora", "inflora") for claim in _hundred(method)),
    Claim(
        "LoRA on the last four blocks: computed whole in every step / lower blocks from disk (`--cache-prefix`)",
        "prefix",
        lambda found: [found["plain_over_cached"]["median"], *found["plain_over_cached"]["range"]],
    ),
    Claim(
        "peak memory of `ridge` over 400,000 features / over 10,000",
        "large",
        lambda found: [found["heads"]["ridge"]["ratios"][-1], *found["heads"]["ridge"]["ranges"][-1]],
        1.1,
    ),
    Claim(
        "bytes held a picture, list of a million",
        "large",
        lambda found: [found["manifest"]["bytes"]],
    ),
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
