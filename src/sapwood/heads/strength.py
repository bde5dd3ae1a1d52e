"""How strongly a ridge head is regularised: chosen anew in every round, by pictures that a fit has not seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sapwood.functional.balance import balancing_weights
from sapwood.functional.statistics import BLOCK, holdout_errors, loo_residuals, one_hot
from sapwood.functional.streaming import Fit, Weighted, fit_sums, summed_holdout_errors, summed_loo_errors
from sapwood.heads.reading import Expanded

STRENGTHS = tuple(10.0**power for power in range(-8, 9))

_ENOUGH = 5
"""Held-out pictures of a class without which they say less than leaving out each training picture in turn."""
_MOST_LEFT_OUT = 2000
"""Training pictures up to which that is done: it decomposes all their features."""
_AS_GOOD = 1.03
"""Errors are flat below the best strength: with few pictures, noise would choose nearly none. Chosen on validation
pictures; one standard error (Breiman et al. 1984) was too much where a class has five."""


class Evidence:
    """Errors of the strengths, added up over rounds.

    Attributes:
        errors: [S] float64, squared errors of one-hot targets, a mean of each class, summed over classes.
    """

    def __init__(self) -> None:
        self.errors = torch.zeros(len(STRENGTHS), dtype=torch.float64)

    def choose(self, train: Expanded, held: Expanded | None, *, balanced: bool) -> tuple[float | None, str]:
        """Try the strengths on a round alone, and say which to take with what earlier rounds said.

        Where each class has five held-out pictures at least, by them; else by leave-one-out in closed form over the
        classes with at least two training pictures. Either way no round is heard alone: the last one's pictures of two
        classes would choose for those of all (RanPAC's rule). Of strengths within 3 % of the least error the largest
        is taken.

        Args:
            train: what the fit sees, h [n, M] in float64. Beyond a block, and beyond M, from sums over blocks.
            held: what it does not see; None without.
            balanced: all classes weigh the same, in fit and error.

        Returns:
            The strength, None where the round says nothing, and what it was tried on.
        """
        labels = train.y if held is None else torch.cat([train.y, held.y])
        present, local = torch.unique(labels, return_inverse=True)
        if len(present) < 2:
            # A target that never changes says nothing of the strength: the errors would be rounding noise.
            return None, "nothing: a round of one class cannot tell strengths apart"
        classes, count = len(present), len(train)
        one, other = local[:count], local[count:]
        weight = _weights(train.y, balanced)
        held_weight = None if held is None else _weights(held.y, balanced)
        if held is not None and held_weight is not None and self._enough(train.y, held.y):
            if _few(train) and _few(held):
                x, y = _rooted(train, one, classes, weight)
                errors = holdout_errors(x, y, *_rooted(held, other, classes, held_weight), STRENGTHS)
            else:
                fit = fit_sums(_weighted(train, one, weight), classes)
                shown = fit_sums(_weighted(held, other, held_weight), classes)
                errors = summed_holdout_errors(fit, shown, STRENGTHS) / (len(held) * classes)
            self.errors += errors * classes**2  # their mean is over columns too
            return most_of(STRENGTHS, self.errors), "validation"
        single = torch.bincount(one, minlength=classes) < 2
        scored = ~single[one]
        if not bool(scored.any()):
            return None, "nothing: no class has two pictures"
        if _few(train):
            x, y = _rooted(train, one, classes, weight)
            here = scored.to(x.device)
            residuals = loo_residuals(x, y, STRENGTHS)
            errors = torch.stack([each[here].square().sum(1).mean() for each in residuals]).cpu()
        else:
            fit = fit_sums(_weighted(train, one, weight), classes)
            errors = summed_loo_errors(fit, _weighted(train, one, weight), single, STRENGTHS) / int(scored.sum())
        share = weight[scored].sqrt().square().mean().item()  # of weights: those of single pictures are not among them
        self.errors += errors / share * len(torch.unique(one[scored]))
        return most_of(STRENGTHS, self.errors), "leave-one-out"

    def choose_beside(self, gram: Tensor, cross: Tensor, count: Tensor, train: Expanded) -> tuple[float | None, str]:
        """As ``choose``, for a round that cannot tell by itself: of one class, or of pictures that are alone in theirs.

        Each picture is left out of the sums of all rounds in turn.

        Args:
            gram, cross, count: those sums [M, M], [M, K] and [K]; the round's training pictures are in them.
            train: these.
        """
        scored = count[train.y] > 1
        if int((count > 0).sum()) < 2 or not bool(scored.any()):
            return None, "nothing: one class, or pictures that are alone in theirs, cannot tell strengths apart"
        device = next(iter(train)).x.device
        fit = Fit(gram.to(device), cross.to(device), float(count.sum()))
        blocks = _weighted(train, train.y, _weights(train.y, balanced=False))
        errors = summed_loo_errors(fit, blocks, (count < 2).to(device), STRENGTHS)
        self.errors += errors / int(scored.sum()) * len(torch.unique(train.y[scored]))
        return most_of(STRENGTHS, self.errors), "leave-one-out, beside the classes of earlier rounds"

    def load(self, errors: Sequence[float] | None) -> None:
        """Restore what ``errors`` was; None of a state that has none."""
        if errors is not None:
            self.errors = torch.tensor(errors, dtype=torch.float64)

    @staticmethod
    def _enough(train: Tensor, held: Tensor) -> bool:
        if len(train) > _MOST_LEFT_OUT:
            return True
        counts = torch.bincount(held, minlength=int(train.max()) + 1)
        return bool((counts[torch.unique(train)] >= _ENOUGH).all())


def most_of(strengths: Sequence[float], errors: Tensor) -> float:
    """The largest strength whose error [S] is within 3 % of the least.

    >>> most_of([1.0, 10.0, 100.0], torch.tensor([2.0, 2.05, 3.0]))
    10.0
    """
    limit = _AS_GOOD * errors.min().item()
    return max(strength for strength, error in zip(strengths, errors.tolist(), strict=True) if error <= limit)


def _few(data: Expanded) -> bool:
    """Whether all fit into a block, or are fewer than h is wide: then no more memory than the Gram matrix takes."""
    return len(data) <= BLOCK or len(data) < next(iter(data)).x.shape[1]


def _rooted(data: Expanded, y: Tensor, classes: int, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and their one-hot targets times the root of a weight: their squares then count so much."""
    root = weight.to(data.whole.device).sqrt().unsqueeze(1)
    return data.whole * root, one_hot(y.to(root.device), classes) * root


def _weighted(data: Expanded, y: Tensor, weight: Tensor) -> Iterator[Weighted]:
    for block, labels, each in zip(data, y.split(BLOCK), weight.split(BLOCK), strict=True):
        yield Weighted(block.x, labels.to(block.x.device), each.to(block.x.device))


def _weights(target: Tensor, balanced: bool) -> Tensor:
    return balancing_weights(target) if balanced else torch.ones(len(target), dtype=torch.float64)
