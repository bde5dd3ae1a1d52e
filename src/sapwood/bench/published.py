"""Published numbers of methods that are not run here, to stand below a measured table; never comparable with it.

Prompt methods do not fit the shape of an adapter with a head; of others the papers' own numbers help to judge ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SECOND_HAND = "[second-hand]"
_IN21K, _IN1K = "ViT-B/16, in21k", "ViT-B/16, in21k then in1k"
_RANPAC = "RanPAC's tables (NeurIPS 2023, arXiv 2307.02251)"
_INFLORA = "official logs (CVPR 2024), mean of five seeds, natural class order"
_SDLORA = "official logs (ICLR 2025), one seed"
_CLORA = "arXiv 2502.17920, 10 tasks"
_E2LORA, _TUNA, _BOARD = "arXiv 2605.27482", "arXiv 2508.08165", "leaderboard page"


@dataclass(frozen=True)
class Published:
    """A published result.

    Attributes:
        method: as its paper calls it.
        benchmark: ours of the same classes and tasks.
        backbone: as far as the source says.
        last: Last-Acc, a fraction.
        incremental: Inc-Acc, a fraction; None if not given.
        source: where the numbers stand.
        second_hand: they were taken from a summary or a leaderboard, not from the paper or its logs.
    """

    method: str
    benchmark: str
    backbone: str
    last: float
    incremental: float | None
    source: str
    second_hand: bool = False

    @property
    def origin(self) -> str:
        """The source with its mark."""
        return f"{self.source} {SECOND_HAND}" if self.second_hand else self.source


def published(benchmark: str) -> tuple[Published, ...]:
    """What was published on a benchmark, upper bounds last; empty for benchmarks that nobody else uses.

    >>> [entry.method for entry in published("cars-10")][:2]
    ['C-LoRA', 'E2-LoRA']
    """
    return tuple(entry for entry in _ALL if entry.benchmark == benchmark)


def published_headings() -> list[str]:
    """Of ``published_cells``; the third and fourth are numbers."""
    return ["method", "backbone", "Last-Acc", "Inc-Acc", "source"]


def published_cells(entry: Published) -> list[str]:
    """A line of the table, in percent."""
    last, incremental = ("–" if value is None else _percent(value) for value in (entry.last, entry.incremental))
    return [entry.method, entry.backbone, last, incremental, entry.origin]


def _percent(value: float) -> str:
    """With the two digits of most sources, or the one of the others."""
    shown = f"{100 * value:.2f}"
    return shown[:-1] if shown.endswith("0") else shown


def published_notes(entries: Sequence[Published]) -> list[str]:
    """What the reader must know."""
    found = [
        "Published by others, not measured here, in percent. Not comparable with the table above: other backbones, "
        "picture sizes, class orders and training."
    ]
    if any(entry.second_hand for entry in entries):
        found.append(f"{SECOND_HAND}: from a summary or leaderboard page; the paper's own table was not seen.")
    return found


_C100, _INR, _CUB, _CARS = "split-cifar100-10x10", "imagenet-r-10x20", "cub-10x20", "cars-10"
_TASKS_OPEN = ", number of tasks not given"

_ALL = (
    Published("C-LoRA", _C100, "ViT", 0.9167, 0.9429, _CLORA, True),
    Published("E2-LoRA", _C100, "ViT", 0.9213, 0.9501, _E2LORA, True),
    Published("TUNA", _C100, "ViT", 0.9179, 0.9488, _TUNA, True),
    Published("InfLoRA", _C100, _IN21K, 0.8633, 0.9118, _INFLORA),
    Published("SD-LoRA", _C100, _IN1K, 0.8726, 0.9205, _SDLORA),
    Published("DualPrompt", _C100, "ViT-B/16", 0.8651, None, "ECCV 2022, arXiv 2204.04799", True),
    Published("RanPAC", _C100, "ViT-B/16", 0.922, None, _RANPAC),
    Published("RanPAC, frozen backbone", _C100, "ViT-B/16", 0.89, None, _RANPAC),
    Published("NCM (SimpleCIL)", _C100, "ViT-B/16", 0.834, None, _RANPAC),
    Published("joint, linear probe", _C100, "ViT-B/16", 0.879, None, _RANPAC),
    Published("joint, all weights", _C100, "ViT-B/16", 0.938, None, _RANPAC),
    Published("E2-LoRA", _INR, "ViT", 0.8277, None, _E2LORA + _TASKS_OPEN, True),
    Published("TUNA", _INR, "ViT", 0.7944, 0.8422, _BOARD + _TASKS_OPEN, True),
    Published("InfLoRA", _INR, _IN21K, 0.7534, 0.8060, _INFLORA),
    Published("SD-LoRA", _INR, _IN1K, 0.7817, 0.8259, _SDLORA),
    Published(
        "L2P, one prompt for the whole test batch",
        _INR,
        "ViT-B/16",
        0.7287,
        0.7827,
        "a user's run, LAMDA-PILOT issue 7; the batch gives the task away" + _TASKS_OPEN,
    ),
    Published("RanPAC", _INR, "ViT-B/16", 0.779, None, _RANPAC),
    Published("RanPAC, frozen backbone", _INR, "ViT-B/16", 0.718, None, _RANPAC),
    Published("NCM (SimpleCIL)", _INR, "ViT-B/16", 0.612, None, _RANPAC),
    Published("joint, linear probe", _INR, "ViT-B/16", 0.72, None, _RANPAC),
    Published("joint, all weights", _INR, "ViT-B/16", 0.866, None, _RANPAC),
    Published("C-LoRA", _CUB, "ViT", 0.9016, 0.9387, _CLORA, True),
    Published("E2-LoRA", _CUB, "ViT", 0.8977, None, _E2LORA + _TASKS_OPEN, True),
    Published("TUNA", _CUB, "ViT", 0.8840, None, _BOARD + _TASKS_OPEN, True),
    Published("CL-LoRA", _CUB, _IN21K, 0.8445, None, _BOARD + _TASKS_OPEN, True),
    Published("RanPAC", _CUB, "ViT-B/16", 0.903, None, _RANPAC),
    Published("RanPAC, frozen backbone", _CUB, "ViT-B/16", 0.887, None, _RANPAC),
    Published("NCM (SimpleCIL)", _CUB, "ViT-B/16", 0.851, None, _RANPAC),
    Published("joint, linear probe", _CUB, "ViT-B/16", 0.887, None, _RANPAC),
    Published("joint, all weights", _CUB, "ViT-B/16", 0.905, None, _RANPAC),
    Published("C-LoRA", _CARS, "ViT", 0.7207, 0.8042, _CLORA, True),
    Published("E2-LoRA", _CARS, "ViT", 0.7582, None, _E2LORA + _TASKS_OPEN, True),
    Published("RanPAC", _CARS, "ViT-B/16", 0.775, None, _RANPAC),
    Published("RanPAC, frozen backbone", _CARS, "ViT-B/16", 0.66, None, _RANPAC),
    Published("NCM (SimpleCIL)", _CARS, "ViT-B/16", 0.377, None, _RANPAC),
    Published("joint, linear probe", _CARS, "ViT-B/16", 0.517, None, _RANPAC),
    Published("joint, all weights", _CARS, "ViT-B/16", 0.869, None, _RANPAC),
)
