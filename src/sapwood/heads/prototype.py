"""Nearest class mean by cosine (NCM, SimpleCIL)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sapwood.functional.statistics import class_means
from sapwood.heads.base import Features, PooledHead, needed
from sapwood.heads.classifiers import Groups
from sapwood.heads.reading import Expanded, answers, asked
from sapwood.heads.settings import PooledConfig, refuse
from sapwood.heads.tensors import ENOUGH_HELD


@dataclass(frozen=True)
class PrototypeConfig(PooledConfig):
    """Settings of the prototype head: those of ``PooledConfig``."""

    def __post_init__(self) -> None:
        refuse("prototype", self.pooled_faults())


class PrototypeHead(PooledHead):
    """logit_c = cos(x, mean of class c's features): SimpleCIL (Zhou et al. 2023).

    The mean is that of the raw features, not normalised first. A class without pictures gets -1, the least cosine.
    Means are kept in float64, so that taking pictures out again leaves what the others alone would have given.
    The temperature is chosen in every round on its validation pictures before they join the means, else by leaving
    out each training picture from its own mean.
    """

    name: ClassVar[str] = "prototype"
    fitted: ClassVar[Literal["gradient", "statistics"]] = "statistics"
    Config: ClassVar[type] = PrototypeConfig
    summary: ClassVar[str] = "cosine to the mean feature of each class (NCM, SimpleCIL)"
    growth: ClassVar[str] = (
        "2 d numbers a class, and d + 1 for the classifier that trains an adapter; to tell unknown pictures d + 1 a "
        "class beside d(d+1)/2, in float64; where the backbone stays, the features of a round's pictures too, up to "
        "8 MB"
    )
    calibrates: ClassVar[bool] = True

    mean: Tensor
    count: Tensor
    centres: Tensor

    def __init__(self, config: PrototypeConfig, dim: int) -> None:
        super().__init__(config, dim)
        self.mean = torch.zeros(0, dim, dtype=torch.float64)  # no buffer: it stays on the CPU in float64
        self.register_buffer("centres", torch.zeros(0, dim), persistent=False)
        self.register_buffer("count", torch.zeros(0, dtype=torch.int64), persistent=False)

    @property
    def wants_features(self) -> bool:
        """Always: the means are made of them."""
        return True

    def logits(self, x: Tensor) -> Tensor:
        """Prediction logits [n, K] of features [n, d]."""
        return self._cosines(x, self.centres)

    def grow_statistics(self, count: int) -> None:
        """Append ``count`` classes without pictures."""
        self.mean = torch.cat([self.mean, self.mean.new_zeros(count, self.dim)])
        self.count = torch.cat([self.count, self.count.new_zeros(count)])
        self.settle()

    def carry(self, P: Tensor) -> None:
        """mean <- P mean."""
        self.mean = self.mean @ P.detach().cpu().double().T
        self.settle()

    @property
    def shares_sums(self) -> bool:
        """Whether what is kept of classes together holds their pictures."""
        return self.known.complete

    def observe(self, features: Features) -> None:
        """Merge pictures into the means."""
        features = self.checked(features)
        self._add(features)
        self.known.observe(*features)

    def join(self, held: Features) -> None:
        """Take held-out pictures in; see ``Joins``."""
        self._add(self.checked(held))

    def forget(self, features: Features) -> None:
        """Take pictures that were observed under these classes out of the means again."""
        x, y = self.checked(features)
        self.known.observe(x, y, -1)
        mean, count = (value.cpu() for value in class_means(x, y, self.classes))
        old = self.count.cpu()
        left = (old - count).clamp(min=0)
        rest = self.mean * old.unsqueeze(1) - mean * count.unsqueeze(1)
        self.mean = torch.where(left.unsqueeze(1) > 0, rest / left.clamp(min=1).unsqueeze(1), 0.0)
        self.count = left.to(self.count)
        self.settle()

    def clear(self) -> None:
        """Take all pictures out; the classes stay."""
        self.mean, self.count = torch.zeros_like(self.mean), torch.zeros_like(self.count)
        self.known.clear()
        self.settle()

    def regroup(self, groups: Groups) -> None:
        """Make each new class of the old ones in its group, as if their pictures had always been its own."""
        self.classifier.regroup(groups)
        self.known.regroup(groups)
        old, means = self.count.cpu(), self.mean
        count = torch.stack([old[list(group)].sum() for group in groups])
        total = torch.stack([(means[list(group)] * old[list(group)].unsqueeze(1)).sum(0) for group in groups])
        single = torch.stack([means[group[0]] for group in groups])  # alone: not multiplied and divided again
        alone = torch.tensor([len(group) == 1 for group in groups]).unsqueeze(1)
        self.mean = torch.where(alone, single, total / count.clamp(min=1).unsqueeze(1))
        self.count = count.to(self.count)
        self.settle()

    def settle(self) -> None:
        """Predict from the means as they are now."""
        self.centres = self.mean.to(self.centres)

    def fit(self, train: Features, validation: Features | None, generator: torch.Generator) -> dict[str, Any]:
        """Merge the round's features into the means."""
        train = self.checked(train)
        self._add(train)
        facts: dict[str, Any] = {}
        parts = self._expanded(train)
        if validation is not None and len(validation.y):
            validation = self.checked(validation)
            held = self._expanded(validation)
            facts["validation_accuracy"], told = answers(held, self.logits, self.classes)
            self._add(validation)
            if len(held) >= ENOUGH_HELD:
                self.calibrate_temperature(*told)
                return {"held_out": "validation", **facts, "temperature": self.temperature}
            parts = parts.joined(held)
        return {**facts, **self._calibrate_leaving_one_out(parts)}

    def _calibrate_leaving_one_out(self, train: Expanded) -> dict[str, Any]:
        """Choose the temperature on pictures that are in the means, each taken out of its own."""
        scored = (self.count.cpu()[train.y] > 1).nonzero().flatten()
        if not len(scored):
            return {"held_out": "nothing: no class has two pictures", "temperature": self.temperature}
        found, labels = [], []
        for x, y in train.at(scored[asked(len(scored), self.classes)]):
            logits = self.logits(x)
            count = self.count[y].unsqueeze(1)
            others = self.centres[y] * count - x  # their sum; a cosine does not mind its length
            logits[torch.arange(len(y), device=y.device), y] = F.cosine_similarity(x, others, dim=1)
            found.append(logits)
            labels.append(y)
        self.calibrate_temperature(torch.cat(found), torch.cat(labels))
        return {"held_out": "leave-one-out", "temperature": self.temperature}

    def _expanded(self, features: Features) -> Expanded:
        return Expanded(*features, lambda x: x.to(self.centres.device))

    def _cosines(self, x: Tensor, mean: Tensor) -> Tensor:
        cosines = F.linear(F.normalize(x, dim=1), F.normalize(mean, dim=1))
        return cosines.masked_fill(self.count == 0, -1.0)

    def _add(self, features: Features) -> None:
        mean, new = (value.cpu() for value in class_means(features.x, features.y, self.classes))
        old = self.count.cpu()
        share = (new.double() / (old + new).clamp(min=1)).unsqueeze(1)
        self.mean = self.mean * (1 - share) + mean * share
        self.count = (old + new).to(self.count)
        self.settle()

    def kept_statistics(self) -> dict[str, Tensor]:
        """Means in float64, and the number of pictures a class."""
        return {"mean": self.mean, "count": self.count}

    def load_statistics(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Restore means and counts."""
        self.mean = needed(tensors, "mean", (self.classes, self.dim)).double().clone()
        self.count = needed(tensors, "count", (self.classes,)).to(self.count)
        self.settle()
