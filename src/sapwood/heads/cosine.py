"""Cosine similarity to one row a class, with a learned scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sapwood.heads.classifiers import Classifier, CosineClassifier
from sapwood.heads.gaussian import AlignConfig, GradientHead
from sapwood.heads.settings import fault_unless_number, refuse


@dataclass(frozen=True)
class CosineConfig(AlignConfig):
    """Settings of the cosine head.

    Attributes:
        scale: where the learned scale begins.
    """

    scale: float = 16.0

    def __post_init__(self) -> None:
        refuse("cosine", self.align_faults() + fault_unless_number("scale", self.scale))


class CosineHead(GradientHead):
    """logits = scale * cos(x, w_c): no class wins by the length of its row."""

    name: ClassVar[str] = "cosine"
    Config: ClassVar[type] = CosineConfig
    summary: ClassVar[str] = "cosine to a row a class, scale learned; align=gaussian re-tunes the rows"
    growth: ClassVar[str] = (
        "d numbers a class; with align=gaussian also d(d+1)/2 + d a class (d if shared); to tell unknown pictures "
        "d + 1 a class beside d(d+1)/2, in float64"
    )

    def make_classifier(self) -> Classifier:
        """The cosine classifier, without rows."""
        return CosineClassifier(self.dim, self.config.scale)
