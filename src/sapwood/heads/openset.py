"""What a head keeps to tell a picture of a known class from one of nothing that was taught."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor

from sapwood.data.rows import BLOCK, Rows, blocks
from sapwood.functional.moments import taken_out
from sapwood.functional.openset import LEAST, Sums, folds, held_of, held_out_distances, limit_of
from sapwood.functional.statistics import exact, pack_triangle, unpack_triangle
from sapwood.heads.classifiers import Groups, left_out
from sapwood.heads.tensors import needed

_FOLDS = 5
_MOST = 1000
"""Distances kept."""


T = TypeVar("T")


class Once(Generic[T]):
    """What follows from tensors, computed anew only where these have changed, in place or as a whole.

    >>> total, once, asked = torch.zeros(2), Once(), []
    >>> for step in (0, 0, 1):
    ...     _ = once.of([total.add_(step) if step else total], lambda: asked.append(total.sum().item()))
    >>> asked
    [0.0, 2.0]
    """

    def __init__(self) -> None:
        self._made_of: list[tuple[Tensor, int]] = []
        self._found: list[T] = []

    def of(self, tensors: Iterable[Tensor], compute: Callable[[], T]) -> T:
        """What ``compute`` gave for the tensors as they are."""
        made_of = [(each, each._version) for each in tensors]  # torch counts what changes a tensor in place
        same = len(made_of) == len(self._made_of) and all(
            one is other and seen == now for (one, seen), (other, now) in zip(self._made_of, made_of, strict=True)
        )
        if not same:
            self._found, self._made_of = [compute()], made_of
        return self._found[0]


class OpenSet:
    """Sums of features over all rounds, and how far held-out pictures were from the classes.

    Attributes:
        own: sums are kept here; else the head's own sums are taken, and handed over where they are needed.
        complete: all pictures that were learned are in the sums; not so in a state of an earlier release.
        total, count, packed_gram: [K, d], [K] and [d(d+1)/2], float64 and int64 on the CPU; empty unless ``own``.
        distances, labels: [m] of held-out pictures, the newest last, and their classes.
    """

    def __init__(self, dim: int, own: bool) -> None:
        self.own, self.complete = own, True
        size = dim if own else 0
        self.total = torch.zeros(0, size, dtype=torch.float64)
        self.count = torch.zeros(0, dtype=torch.int64)
        self.packed_gram = torch.zeros(size * (size + 1) // 2, dtype=torch.float64)
        self.distances = torch.zeros(0, dtype=torch.float64)
        self.labels = torch.zeros(0, dtype=torch.int64)

    @property
    def sums(self) -> Sums:
        """Of all pictures."""
        return Sums(self.total, self.count, unpack_triangle(self.packed_gram))

    @property
    def limit(self) -> float | None:
        """The distance up to which a picture counts as known; None while it cannot be said."""
        return limit_of(self.distances) if self.complete else None

    def grow(self, count: int) -> None:
        """Append ``count`` classes without pictures."""
        self.total = torch.cat([self.total, self.total.new_zeros(count, self.total.shape[1])])
        self.count = torch.cat([self.count, self.count.new_zeros(count)])

    def observe(self, x: Rows, y: Tensor, sign: int = 1) -> None:
        """Add pictures [n, d] of classes [n] to the sums; with ``sign`` -1 take them out again."""
        if not self.own:
            return
        y, gram = y.cpu(), None
        for rows, labels in zip(blocks(x), y.split(BLOCK), strict=True):
            rows = exact(rows).cpu()
            self.total.index_add_(0, labels, rows, alpha=sign)
            gram = rows.T @ rows if gram is None else gram.addmm_(rows.T, rows)
        self.count += sign * torch.bincount(y, minlength=len(self.count))
        if gram is not None:
            self.packed_gram += sign * pack_triangle(gram)

    def forget(self, x: Tensor, label: int, number: int) -> None:
        """Take so many pictures of a class out of the sums, whose features are like [k, d].

        Exact where these are their features; else the covariance that all classes share stays one.
        """
        mean, scatter = self.total[label] / self.count[label].clamp(min=1), self.sums.gram - self._between()
        left = taken_out(mean, scatter, int(self.count[label]), x.cpu(), number)
        self.count[label], self.total[label] = left.count, left.mean * left.count
        self.packed_gram = pack_triangle(left.scatter + self._between())

    def _between(self) -> Tensor:
        """What the Gram matrix would be if all pictures were their class's mean."""
        return self.total.T @ (self.total / self.count.clamp(min=1).unsqueeze(1))

    def clear(self) -> None:
        """Take all pictures out of the sums; what held-out ones showed stays."""
        for sums in (self.total, self.count, self.packed_gram):
            sums.zero_()

    def carry(self, P: Tensor) -> None:
        """total <- total Pᵀ and gram <- P gram Pᵀ; see ``functional.statistics.drift_map``."""
        if self.own:
            P = P.detach().cpu().double()
            self.total = self.total @ P.T
            self.packed_gram = pack_triangle(P @ unpack_triangle(self.packed_gram) @ P.T)

    def regroup(self, groups: Groups) -> None:
        """Make each new class of the old ones in its group.

        Of a class that goes without its pictures having been taken out before, the Gram matrix loses what it would
        hold if the class were spread as all are: the shared covariance stays as it is.
        """
        place = {old: new for new, group in enumerate(groups) for old in group}
        gone = left_out(groups, self.count)
        if self.own and gone.any():
            self.packed_gram -= pack_triangle(held_of(self.sums, gone))
        self.total = torch.stack([self.total[list(group)].sum(0) for group in groups])
        self.count = torch.stack([self.count[list(group)].sum() for group in groups])
        labels = torch.tensor([place.get(label, -1) for label in self.labels.tolist()], dtype=torch.int64)
        self.distances, self.labels = self.distances[labels >= 0], labels[labels >= 0]

    def hold_out(self, sums: Sums, x: Tensor, y: Tensor, held: int, *, stays: bool) -> None:
        """Measure how far a round's pictures are from classes formed without them.

        Where the round left the features as they were (``stays``) all its pictures take turns, a fifth at a time, and
        stand beside those of earlier rounds, of each class as many as are kept; else its validation pictures alone,
        since the others have shaped the features: 19 or more replace those of earlier rounds. Of a round larger than a
        block as many are measured as are kept.

        Args:
            sums: of all rounds, these pictures among them.
            x, y: features [n, d], which may be ``Rows``, and classes [n], validation pictures last.
            held: number of these.
            stays: see above.
        """
        parts = folds(y, _FOLDS) if stays else [torch.arange(len(y) - held, len(y))] if held else []
        distances, labels = held_out_distances(sums, x, y, parts, _MOST if len(y) > BLOCK else None)
        if stays or len(distances) < LEAST:
            distances, labels = torch.cat([self.distances, distances]), torch.cat([self.labels, labels])
        kept = newest_of_each(labels, _MOST)
        self.distances, self.labels = distances[kept], labels[kept]

    def tensors(self) -> dict[str, Tensor]:
        """What is stored."""
        if not self.complete:
            return {}
        found = {"known.total": self.total, "known.count": self.count, "known.gram": self.packed_gram}
        held = {"known.distances": self.distances, "known.labels": self.labels}
        return (found if self.own else {}) | (held if len(self.distances) else {})

    def meta(self) -> int | None:
        """Number of held-out pictures; None where the sums are not complete."""
        return len(self.distances) if self.complete else None

    def load(self, tensors: Mapping[str, Tensor], held: int | None, classes: int) -> None:
        """Restore what ``tensors`` and ``meta`` gave, of a head with so many classes.

        ``held`` is None too in a state of a release that kept nothing of the kind.
        """

        def stored(name: str, like: Tensor) -> Tensor:
            return needed(tensors, name, tuple(like.shape)).to(like.dtype).clone()

        self.complete = held is not None or not self.own
        self.total, self.count = self.total.new_zeros(classes, self.total.shape[1]), self.count.new_zeros(classes)
        self.distances, self.labels = self.distances.new_zeros(held or 0), self.labels.new_zeros(held or 0)
        if self.own and self.complete:
            self.total, self.count = stored("known.total", self.total), stored("known.count", self.count)
            self.packed_gram = stored("known.gram", self.packed_gram)
        if held:
            self.distances, self.labels = stored("known.distances", self.distances), stored("known.labels", self.labels)


def newest_of_each(labels: Tensor, most: int) -> Tensor:
    """Indices of at most so many entries, in their order: as many of each label as of the others, the last ones.

    >>> newest_of_each(torch.tensor([0, 0, 0, 0, 1, 0, 2]), 4).tolist()
    [3, 4, 5, 6]
    """
    if len(labels) <= most:
        return torch.arange(len(labels))
    age = torch.zeros_like(labels)  # how many of its own label come after each
    for label in torch.unique(labels):
        places = (labels == label).nonzero().flatten()
        age[places] = torch.arange(len(places)).flip(0)
    return age.argsort(stable=True)[:most].sort().values
