"""A classifier trained by gradients, and its re-tuning on samples of the classes' Gaussians (SLCA)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sapwood.heads.base import Features, PooledHead, needed
from sapwood.heads.class_gaussians import ClassGaussians
from sapwood.heads.classifiers import Classifier, Groups
from sapwood.heads.settings import PooledConfig, fault_unless_among, fault_unless_int, fault_unless_number


@dataclass(frozen=True)
class AlignConfig(PooledConfig):
    """Settings of classifier alignment.

    Attributes:
        align: ``none``, or ``gaussian``: keep a Gaussian a class, re-tune all rows from the second round on.
        covariance: one per ``class`` (K d(d+1)/2 numbers) or one ``shared`` by all (d(d+1)/2).
        covariance_ridge: added to the covariance's diagonal, relative to its mean variance.
        align_samples: features drawn a class.
        align_epochs, align_batch, align_lr, align_momentum: of plain SGD on them.
        align_steps: least steps, by more epochs where classes are few: the paper's five epochs are 500 steps for its
            100 classes, and the 50 that they would be for ten tune next to nothing.
        align_norm: logits are divided by this times their Euclidean norm before the cross entropy.
        drift, drift_strength: see ``PooledConfig``; ``linear`` needs ``align = gaussian``.
    """

    align: str = "none"
    covariance: str = "class"
    covariance_ridge: float = 1e-4
    align_samples: int = 256
    align_epochs: int = 5
    align_steps: int = 500
    align_batch: int = 256
    align_lr: float = 0.01
    align_momentum: float = 0.9
    align_norm: float = 0.1

    def align_faults(self) -> list[str]:
        """Faults of these settings."""
        faults = self.pooled_faults()
        faults += fault_unless_among("align", self.align, ("none", "gaussian"))
        faults += fault_unless_among("covariance", self.covariance, ("class", "shared"))
        for name in ("align_samples", "align_epochs", "align_steps", "align_batch"):
            faults += fault_unless_int(name, getattr(self, name), 1)
        for name in ("align_lr", "align_norm"):
            faults += fault_unless_number(name, getattr(self, name))
        faults += fault_unless_number("covariance_ridge", self.covariance_ridge, zero=True)
        faults += fault_unless_number("align_momentum", self.align_momentum, zero=True, below=1)
        if self.drift == "linear" and self.align == "none":
            faults += ["drift=linear carries the Gaussians; it needs align=gaussian"]
        return faults


def align(
    classifier: Classifier, gaussians: ClassGaussians, config: AlignConfig, generator: torch.Generator
) -> list[float]:
    """Re-tune all rows of a classifier on samples of the Gaussians (SLCA, Zhang et al. 2023, stage 2).

    The loss is the cross entropy of ``free_logits``. It says little of rows as small as new ones, as a class that
    came alone has them (no loss has moved them): those are drawn first.

    Returns:
        The mean loss of every epoch, in nats.
    """
    device = classifier.weight.device
    x, y = gaussians.sample(config.align_samples, config.covariance_ridge, generator)
    x, y = x.to(device), y.to(device)
    classifier.draw_idle(generator)
    optimiser = torch.optim.SGD(classifier.parameters(), lr=config.align_lr, momentum=config.align_momentum)
    losses = []
    with torch.enable_grad():
        for _ in range(
            max(config.align_epochs, math.ceil(config.align_steps / math.ceil(len(y) / config.align_batch)))
        ):
            total = 0.0
            for rows in torch.randperm(len(y), generator=generator).to(device).split(config.align_batch):
                loss = F.cross_entropy(free_logits(classifier(x[rows]), config), y[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                total += loss.item() * len(rows)
            losses.append(total / len(y))
    optimiser.zero_grad()
    return losses


def free_logits(logits: Tensor, config: AlignConfig) -> Tensor:
    """logits / (align_norm * ||logits||_2), of which a loss leaves the logits' size free."""
    size = config.align_norm * logits.norm(dim=1, keepdim=True)
    return logits / size.clamp(min=1e-12)


class GradientHead(PooledHead):
    """A head that predicts with its classifier; with ``align = gaussian`` the rows are re-tuned after each round.

    The first round only collects Gaussians: its rows were just trained together.
    """

    fitted: ClassVar[Literal["gradient", "statistics"]] = "gradient"

    def __init__(self, config: AlignConfig, dim: int) -> None:
        super().__init__(config, dim)
        self.gaussians = ClassGaussians(dim, config.covariance == "shared") if config.align == "gaussian" else None

    def logits(self, x: Tensor) -> Tensor:
        """Prediction logits [n, K] of features [n, d]."""
        return self.classifier(x)

    @property
    def wants_features(self) -> bool:
        """Whether Gaussians are kept."""
        return self.gaussians is not None

    def grow_statistics(self, count: int) -> None:
        """Make room for ``count`` new classes in the Gaussians."""
        if self.gaussians is not None:
            self.gaussians.grow(count)

    def regroup(self, groups: Groups) -> None:
        """Make each new class of the old ones in its group: the row of the first, the Gaussians of all."""
        self.classifier.regroup(groups)
        self.known.regroup(groups)
        if self.gaussians is not None:
            self.gaussians.regroup(groups)

    def carry(self, P: Tensor) -> None:
        """Map the Gaussians by P."""
        if self.gaussians is not None:
            self.gaussians.carry(P)

    def fit(self, train: Features, validation: Features | None, generator: torch.Generator) -> dict[str, Any]:
        """Collect the round's Gaussians from its training pictures; align from the second round on."""
        if self.gaussians is None:
            return {}
        self.gaussians.observe(self.checked(train))
        if self.gaussians.rounds < 2:
            return {"aligned": False}
        losses = align(self.classifier, self.gaussians, self.config, generator)
        return {"aligned": True, "align_loss": losses}

    def kept_statistics(self) -> dict[str, Tensor]:
        """The Gaussians' means, covariances and counts, if kept."""
        if self.gaussians is None:
            return {}
        kept = self.gaussians
        return {"mean": kept.mean, "covariance": kept.covariance, "count": kept.count}

    def meta(self) -> dict[str, Any]:
        """Classes, temperature, and how many rounds the Gaussians saw."""
        return {**super().meta(), "rounds": self.gaussians.rounds if self.gaussians is not None else 0}

    def load_statistics(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Restore the Gaussians."""
        kept = self.gaussians
        if kept is not None:
            matrices = 1 if kept.shared else self.classes
            kept.mean = needed(tensors, "mean", (self.classes, self.dim)).float().clone()
            kept.covariance = needed(tensors, "covariance", (matrices, kept.covariance.shape[1])).float().clone()
            kept.count = needed(tensors, "count", (self.classes,)).clone()
            kept.rounds = int(meta["rounds"])
