"""A linear layer, one row and one bias a class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sapwood.heads.gaussian import AlignConfig, GradientHead
from sapwood.heads.settings import refuse


@dataclass(frozen=True)
class LinearConfig(AlignConfig):
    """Settings of the linear head: those of ``AlignConfig``."""

    def __post_init__(self) -> None:
        refuse("linear", self.align_faults())


class LinearHead(GradientHead):
    """logits = x W^T + b."""

    name: ClassVar[str] = "linear"
    Config: ClassVar[type] = LinearConfig
    summary: ClassVar[str] = "a row and a bias a class, trained by gradients; align=gaussian re-tunes them"
    growth: ClassVar[str] = (
        "d + 1 numbers a class; with align=gaussian also d(d+1)/2 + d a class (d if shared); to tell unknown pictures "
        "d + 1 a class beside d(d+1)/2, in float64"
    )
