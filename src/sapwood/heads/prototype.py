"""Nearest class mean by cosine (NCM, SimpleCIL)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sapwood.functional.statistics import class_means, exact
from sapwood.heads.base import Features, PooledHead, needed
from sapwood.heads.settings import DriftConfig, refuse


@dataclass(frozen=True)
class PrototypeConfig(DriftConfig):
    """Settings of the prototype head: those of ``DriftConfig``."""

    def __post_init__(self) -> None:
        refuse("prototype", self.drift_faults())


class PrototypeHead(PooledHead):
    """logit_c = cos(x, mean of class c's features): SimpleCIL (Zhou et al. 2023).

    The mean is that of the raw features, not normalised first. A class without pictures gets -1, the least cosine.
    The temperature is chosen in every round on its validation pictures before they join the means, else by leaving
    out each training picture from its own mean.
    """

    name: ClassVar[str] = "prototype"
    fitted: ClassVar[Literal["gradient", "statistics"]] = "statistics"
    Config: ClassVar[type] = PrototypeConfig
    summary: ClassVar[str] = "cosine to the mean feature of each class (NCM, SimpleCIL)"
    growth: ClassVar[str] = "d numbers a class, and d + 1 for the classifier that trains an adapter"
    calibrates: ClassVar[bool] = True

    mean: Tensor
    count: Tensor

    def __init__(self, config: PrototypeConfig, dim: int) -> None:
        super().__init__(config, dim)
        self.register_buffer("mean", torch.zeros(0, dim), persistent=False)
        self.register_buffer("count", torch.zeros(0, dtype=torch.int64), persistent=False)

    @property
    def wants_features(self) -> bool:
        """Always: the means are made of them."""
        return True

    def logits(self, x: Tensor) -> Tensor:
        """Prediction logits [n, K] of features [n, d]."""
        return self._cosines(x, self.mean)

    def grow_statistics(self, count: int) -> None:
        """Append ``count`` classes without pictures."""
        self.mean = torch.cat([self.mean, self.mean.new_zeros(count, self.dim)])
        self.count = torch.cat([self.count, self.count.new_zeros(count)])

    def carry(self, P: Tensor) -> None:
        """mean <- P mean."""
        self.mean = (exact(self.mean).cpu() @ P.detach().cpu().double().T).to(self.mean)

    def fit(self, train: Features, validation: Features | None, generator: torch.Generator) -> dict[str, Any]:
        """Merge the round's features into the means."""
        train = self._here(train)
        self._add(train)
        if validation is not None and len(validation.y):
            held = self._here(validation)
            logits = self.logits(held.x)
            self.calibrate_temperature(logits, held.y)
            self._add(held)
            right = self.right_share(logits, held.y)
            return {"held_out": "validation", "validation_accuracy": right, "temperature": self.temperature}
        scored = self.count[train.y] > 1
        if not bool(scored.any()):
            return {"held_out": "nothing: no class has two pictures", "temperature": self.temperature}
        x, y = train.x[scored], train.y[scored]
        logits = self.logits(x)
        count = self.count[y].unsqueeze(1)
        others = self.mean[y] * count - x  # their sum; a cosine does not mind its length
        logits[torch.arange(len(y), device=y.device), y] = F.cosine_similarity(x, others, dim=1)
        self.calibrate_temperature(logits, y)
        return {"held_out": "leave-one-out", "temperature": self.temperature}

    def _cosines(self, x: Tensor, mean: Tensor) -> Tensor:
        cosines = F.linear(F.normalize(x, dim=1), F.normalize(mean, dim=1))
        return cosines.masked_fill(self.count == 0, -1.0)

    def _here(self, features: Features) -> Features:
        x, y = self.checked(features)
        return Features(x.to(self.mean.device), y.to(self.mean.device))

    def _add(self, features: Features) -> None:
        mean, count = class_means(features.x, features.y, self.classes)
        old, new = self.count.to(mean.device), count
        share = (new.double() / (old + new).clamp(min=1)).unsqueeze(1)
        merged = exact(self.mean).to(mean.device) * (1 - share) + mean * share
        self.mean = merged.to(self.mean)
        self.count = (old + new).to(self.count)

    def kept_statistics(self) -> dict[str, Tensor]:
        """Means in float32, and the number of pictures a class."""
        return {"mean": self.mean, "count": self.count}

    def load_statistics(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Restore means and counts."""
        self.mean = needed(tensors, "mean", (self.classes, self.dim)).to(self.mean)
        self.count = needed(tensors, "count", (self.classes,)).to(self.count)
