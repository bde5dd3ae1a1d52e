"""One Gaussian a class over pooled features, and the re-tuning of a classifier on samples of them (SLCA)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sapwood.functional.statistics import exact, pack_triangle, sample_gaussian, unpack_triangle
from sapwood.heads.base import Features, PooledHead, needed
from sapwood.heads.classifiers import Classifier, Groups
from sapwood.heads.settings import DriftConfig, fault_unless_among, fault_unless_int, fault_unless_number


@dataclass(frozen=True)
class AlignConfig(DriftConfig):
    """Settings of classifier alignment.

    Attributes:
        align: ``none``, or ``gaussian``: keep a Gaussian a class, re-tune all rows from the second round on.
        covariance: one per ``class`` (K d(d+1)/2 numbers) or one ``shared`` by all (d(d+1)/2).
        covariance_ridge: added to the covariance's diagonal, relative to its mean variance.
        align_samples: features drawn a class.
        align_epochs, align_batch, align_lr, align_momentum: of plain SGD on them.
        align_norm: logits are divided by this times their Euclidean norm before the cross entropy.
        drift, drift_strength: see ``DriftConfig``; ``linear`` needs ``align = gaussian``.
    """

    align: str = "none"
    covariance: str = "class"
    covariance_ridge: float = 1e-4
    align_samples: int = 256
    align_epochs: int = 5
    align_batch: int = 256
    align_lr: float = 0.01
    align_momentum: float = 0.9
    align_norm: float = 0.1

    def align_faults(self) -> list[str]:
        """Faults of these settings."""
        faults = self.drift_faults()
        faults += fault_unless_among("align", self.align, ("none", "gaussian"))
        faults += fault_unless_among("covariance", self.covariance, ("class", "shared"))
        for name in ("align_samples", "align_epochs", "align_batch"):
            faults += fault_unless_int(name, getattr(self, name), 1)
        for name in ("align_lr", "align_norm"):
            faults += fault_unless_number(name, getattr(self, name))
        faults += fault_unless_number("covariance_ridge", self.covariance_ridge, zero=True)
        faults += fault_unless_number("align_momentum", self.align_momentum, zero=True, below=1)
        if self.drift == "linear" and self.align == "none":
            faults += ["drift=linear carries the Gaussians; it needs align=gaussian"]
        return faults


class ClassGaussians:
    """Mean and unbiased covariance of every class's features, in float32 on the CPU.

    More pictures of a known class are merged into its moments (Chan, Golub and LeVeque 1979). A shared covariance is
    the pooled one: the classes' scatter over the sum of (n_c - 1). A class of one picture has covariance zero.

    Attributes:
        mean: [K, d].
        covariance: [K, d(d+1)/2], or [1, d(d+1)/2] if shared: upper triangles.
        count: [K] int64.
        rounds: how many times features were observed.
    """

    def __init__(self, dim: int, shared: bool) -> None:
        self.shared = shared
        self.mean = torch.zeros(0, dim)
        self.covariance = torch.zeros(int(shared), dim * (dim + 1) // 2)
        self.count = torch.zeros(0, dtype=torch.int64)
        self.rounds = 0

    def grow(self, count: int) -> None:
        """Append ``count`` classes without pictures."""
        self.mean = torch.cat([self.mean, self.mean.new_zeros(count, self.mean.shape[1])])
        self.count = torch.cat([self.count, self.count.new_zeros(count)])
        if not self.shared:
            self.covariance = torch.cat([self.covariance, self.covariance.new_zeros(count, self.covariance.shape[1])])

    def observe(self, features: Features) -> None:
        """Merge a round's features into the moments."""
        x, y = exact(features.x), features.y
        pooled = torch.zeros(self.covariance.shape[1], dtype=torch.float64)
        before = self._freedom()
        for label in torch.unique(y).tolist():
            rows = x[(y == label).to(x.device)]
            old, new = int(self.count[label]), len(rows)
            mean = rows.mean(0)
            centred = rows - mean
            step = (mean - exact(self.mean[label]).to(x.device)) if old else torch.zeros_like(mean)
            scatter = (centred.T @ centred + torch.outer(step, step) * (old * new / (old + new))).cpu()
            self.mean[label] = mean - step * (old / (old + new))
            self.count[label] = old + new
            if self.shared:
                pooled += pack_triangle(scatter)
            else:
                total = self.covariance[label].double() * max(old - 1, 0) + pack_triangle(scatter)
                self.covariance[label] = total / max(old + new - 1, 1)
        if self.shared:
            total = self.covariance[0].double() * before + pooled
            self.covariance[0] = total / max(self._freedom(), 1)
        self.rounds += 1

    def regroup(self, groups: Groups) -> None:
        """Make each new class of the old ones in its group; a shared covariance keeps what it has of those that go."""
        mean, count = self.mean.double(), self.count
        grouped, scatters, between = ClassGaussians(self.mean.shape[1], self.shared), [], torch.zeros(())
        grouped.grow(len(groups))
        for index, group in enumerate(groups):
            members = list(group)
            total = int(count[members].sum())
            grouped.count[index] = total
            centre = (mean[members] * count[members].unsqueeze(1)).sum(0) / max(total, 1)
            grouped.mean[index] = self.mean[group[0]] if len(group) == 1 else centre
            apart = mean[members] - centre
            spread = pack_triangle(apart.T @ (apart * count[members].unsqueeze(1))) if len(group) > 1 else 0.0
            if self.shared:
                between = between + spread
                continue
            freedom = (count[members] - 1).clamp(min=0).unsqueeze(1)
            scatter = (self.covariance[members].double() * freedom).sum(0) + spread
            alone = self.covariance[group[0]]
            scatters.append(alone if len(group) == 1 else (scatter / max(total - 1, 1)).float())
        self.mean, self.count = grouped.mean, grouped.count
        if not self.shared:
            self.covariance = torch.stack(scatters)
        elif bool(between.any()):
            before = int((count[[member for group in groups for member in group]] - 1).clamp(min=0).sum())
            self.covariance = ((self.covariance.double() * before + between) / max(self._freedom(), 1)).float()

    def carry(self, P: Tensor) -> None:
        """mean <- P mean, covariance <- P covariance P^T."""
        P = P.detach().cpu().double()
        self.mean = (self.mean.double() @ P.T).float()
        for index, packed in enumerate(self.covariance):
            self.covariance[index] = pack_triangle(P @ unpack_triangle(packed.double()) @ P.T)

    def sample(self, count: int, ridge: float, generator: torch.Generator) -> Features:
        """``count`` features of every class that has pictures, on the CPU."""
        present = torch.nonzero(self.count).flatten()
        drawn = []
        for label in present.tolist():
            covariance = unpack_triangle(self.covariance[0 if self.shared else label])
            drawn.append(sample_gaussian(self.mean[label], covariance, count, ridge, generator).float())
        return Features(torch.cat(drawn), present.repeat_interleave(count))

    def _freedom(self) -> int:
        return int((self.count - 1).clamp(min=0).sum())


def align(
    classifier: Classifier, gaussians: ClassGaussians, config: AlignConfig, generator: torch.Generator
) -> list[float]:
    """Re-tune all rows of a classifier on samples of the Gaussians (SLCA, Zhang et al. 2023, stage 2).

    The loss is the cross entropy of logits / (align_norm * ||logits||_2), which leaves the logits' size free.

    Returns:
        The mean loss of every epoch, in nats.
    """
    device = classifier.weight.device
    x, y = gaussians.sample(config.align_samples, config.covariance_ridge, generator)
    x, y = x.to(device), y.to(device)
    optimiser = torch.optim.SGD(classifier.parameters(), lr=config.align_lr, momentum=config.align_momentum)
    losses = []
    with torch.enable_grad():
        for _ in range(config.align_epochs):
            total = 0.0
            for rows in torch.randperm(len(y), generator=generator).to(device).split(config.align_batch):
                logits = classifier(x[rows])
                size = config.align_norm * logits.norm(dim=1, keepdim=True)
                loss = F.cross_entropy(logits / size.clamp(min=1e-12), y[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                total += loss.item() * len(rows)
            losses.append(total / len(y))
    optimiser.zero_grad()
    return losses


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
