"""One Gaussian a class over pooled features."""

from __future__ import annotations

import torch
from torch import Tensor

from sapwood.functional.moments import taken_out
from sapwood.functional.openset import Sums, shrunk, within_covariance
from sapwood.functional.statistics import exact, pack_triangle, sample_gaussian, unpack_triangle
from sapwood.heads.classifiers import Groups
from sapwood.heads.tensors import Features


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

    @classmethod
    def of(cls, sums: Sums) -> ClassGaussians:
        """Those of the sums, with a shared covariance, ``shrunk``: zeros where no class has two pictures."""
        made, within = cls(sums.total.shape[1], shared=True), within_covariance(sums)
        made.count = sums.count.clone()
        made.mean = (sums.total / sums.count.clamp(min=1).unsqueeze(1)).float()
        if within is not None:
            made.covariance = pack_triangle(shrunk(within, made._freedom()))[None].float()
        return made

    def grow(self, count: int) -> None:
        """Append ``count`` classes without pictures."""
        self.mean = torch.cat([self.mean, self.mean.new_zeros(count, self.mean.shape[1])])
        self.count = torch.cat([self.count, self.count.new_zeros(count)])
        if not self.shared:
            self.covariance = torch.cat([self.covariance, self.covariance.new_zeros(count, self.covariance.shape[1])])

    def observe(self, features: Features) -> None:
        """Merge a round's features into the moments, one class at a time."""
        y = features.y
        pooled = torch.zeros(self.covariance.shape[1], dtype=torch.float64)
        before = self._freedom()
        for label in torch.unique(y).tolist():
            rows = exact(features.x[(y == label).nonzero().flatten()])
            old, new = int(self.count[label]), len(rows)
            mean = rows.mean(0)
            centred = rows - mean
            step = (mean - exact(self.mean[label]).to(rows.device)) if old else torch.zeros_like(mean)
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

    def forget(self, features: Features) -> None:
        """Take pictures out again that were observed under these classes, as far as their features are those of then.

        Exact (but for rounding) if they are; else the moments stay those of some features.
        """
        x, y = exact(features.x).cpu(), features.y.cpu()
        for label in torch.unique(y).tolist():
            rows, old = x[y == label], int(self.count[label])
            place, freedom = (0, self._freedom()) if self.shared else (label, max(old - 1, 0))
            scatter = unpack_triangle(self.covariance[place].double()) * freedom
            left = taken_out(self.mean[label], scatter, old, rows, min(old, len(rows)))
            self.mean[label], self.count[label] = left.mean, left.count
            freedom = self._freedom() if self.shared else left.count - 1
            self.covariance[place] = pack_triangle(left.scatter) / max(freedom, 1)
        self.rounds -= 1

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
