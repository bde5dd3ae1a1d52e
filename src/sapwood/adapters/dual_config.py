"""Settings of DualLoRA."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from sapwood.adapters.base import Vectors
from sapwood.settings import check


@dataclass(frozen=True)
class DualConfig:
    """Shape of DualLoRA; all defaults but ``targets`` and ``rank``, which are InfLoRA's, are ours.

    Attributes:
        rank: r, inner width of either pair.
        targets: projections that are adapted: q, k, v, o, fc1, fc2.
        blocks: ``all``, indices or ranges: ``0,1``, ``-4:``.
        energy: share of its features' energy that a round's directions and the earlier ones hold together.
        expected_tasks: number of rounds to come in all; with it ``energy`` rises towards 1, round by round.
        residual_basis: directions of the residual pair: ``previous``, those of the round before, which the orthogonal
            pair must not touch; or ``current``, those that the round's own pictures have before training.
        residual: false leaves the orthogonal pair alone.
        gates: false leaves every residual part at full strength.
        token: what directions and gates are taken from: ``class``, or ``mean`` of the patch tokens.
        moments: what directions are found from: ``token``, that token alone, or ``all`` tokens.
        sharpness: of the softmax over tasks.
        calibration: weight of the task's log-probability in the logits; 0 switches it off, as methods do before a head
            that puts all classes on one scale (``+ridge``, ``+slca``).
        confidence: least probability of the likeliest task for which logits are changed.
        freeze_down: the A of the orthogonal pair stays as it is found and only B learns, as in InfLoRA.
    """

    rank: int = 10
    targets: tuple[str, ...] = ("k", "v")
    blocks: str = "all"
    energy: float = 0.95
    expected_tasks: int | None = None
    residual_basis: Literal["previous", "current"] = "previous"
    residual: bool = True
    gates: bool = True
    token: Literal["class", "mean"] = "class"
    moments: Literal["token", "all"] = "token"
    sharpness: float = 4.0
    calibration: float = 1.0
    confidence: float = 0.5
    freeze_down: bool = False

    def __post_init__(self) -> None:
        tasks = self.expected_tasks
        check(
            (self.rank >= 1, f"adapter.rank must be >= 1, got {self.rank}"),
            (0 < self.energy <= 1, f"adapter.energy must be in (0, 1], got {self.energy}"),
            (tasks is None or tasks >= 1, f"adapter.expected_tasks must be >= 1 or none, got {tasks}"),
            (0 <= self.sharpness < math.inf, f"adapter.sharpness must be >= 0 and finite, got {self.sharpness}"),
            (0 <= self.calibration < math.inf, f"adapter.calibration must be >= 0 and finite, got {self.calibration}"),
            (0 <= self.confidence <= 1, f"adapter.confidence must be in 0..1, got {self.confidence}"),
        )

    @property
    def directed(self) -> Vectors:
        """What directions are found from."""
        return Vectors(self.token if self.moments == "token" else "all")
