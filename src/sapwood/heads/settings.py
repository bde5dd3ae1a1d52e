"""Settings that several heads share, and how faults in them are told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sapwood.errors import ConfigError

POOLED = "pooled"
"""What is read where no blocks are named: the backbone's own feature of a picture."""


def fault_unless_int(name: str, value: Any, least: int) -> list[str]:
    """A fault if the value is not an integer of at least ``least``."""
    good = isinstance(value, int) and not isinstance(value, bool) and value >= least
    return [] if good else [f"{name} must be an integer >= {least}, got {value!r}"]


def fault_unless_number(name: str, value: Any, *, zero: bool = False, below: float = math.inf) -> list[str]:
    """A fault if the value is not a finite number > 0 (>= 0 with ``zero``) and < ``below``."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    good = good and (value >= 0 if zero else value > 0) and value < below
    limit = "" if below == math.inf else f" and < {below:g}"
    return [] if good else [f"{name} must be a number {'>=' if zero else '>'} 0{limit}, got {value!r}"]


def fault_unless_among(name: str, value: Any, known: tuple[str, ...]) -> list[str]:
    """A fault if the value is none of those known."""
    return [] if value in known else [f"{name} must be one of {', '.join(known)}; got {value!r}"]


def refuse(head: str, faults: list[str]) -> None:
    """Raise a ConfigError with all faults, if there are any."""
    if faults:
        raise ConfigError(f"head {head!r}: {'; '.join(faults)}")


@dataclass(frozen=True)
class PooledConfig:
    """What heads of pooled features read, and whether statistics follow when an adapter moves the features.

    Attributes:
        blocks: ``pooled``, the backbone's own feature; or blocks as in ``adapter.blocks``, whose class tokens are read
            one behind the other, each after the final norm (LayUP, Ahrens et al. 2024; without a class token the mean
            patch). Sums then have as many rows and columns as all of them have numbers.
        drift: ``none``, or ``linear``: carried by a map fitted on the new round's pictures.
        drift_strength: of that fit, relative to the mean diagonal of its Gram matrix.
    """

    blocks: str = POOLED
    drift: str = "none"
    drift_strength: float = 0.1

    def pooled_faults(self) -> list[str]:
        """Faults of these settings; whether the blocks are there shows once there is a backbone."""
        return [
            *([] if isinstance(self.blocks, str) else [f"blocks must be a text, got {self.blocks!r}"]),
            *fault_unless_among("drift", self.drift, ("none", "linear")),
            *fault_unless_number("drift_strength", self.drift_strength),
        ]
