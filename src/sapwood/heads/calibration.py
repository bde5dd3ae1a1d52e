"""The temperature of a head: on which pictures it is chosen, and how little a few of them may change."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sapwood.functional.statistics import fit_temperature
from sapwood.heads.tensors import ENOUGH_HELD

_FLAT = 1000.0
"""A temperature that all but levels scores: pictures that are nearly all mistaken ask for one without end."""


class Chosen(NamedTuple):
    """A temperature, and the number of held-out pictures that told it; none have told one that was never chosen."""

    temperature: float
    pictures: int


def chosen_beside(before: Chosen, logits: Tensor, targets: Tensor, fewest: int) -> Chosen | None:
    """What held-out pictures of a round say of the temperature, beside those of the rounds before.

    They choose by negative log likelihood, and are averaged with what was chosen before: every picture weighs the same,
    at most ``ENOUGH_HELD`` of a class. So many of c of the K classes take the place of a share c / K of those before,
    fewer that of a part of it. The mean is of 1 / T, in which the likelihood is convex. A picture whose true class is
    ruled out (logit -inf) cannot tell.

    Args:
        before: as it was.
        logits: [n, K], as for ``fit_temperature``.
        targets: [n] int64.
        fewest: classes of which there must be pictures.

    Returns:
        None where there are not, and where they are nearly all mistaken and none told before.

    >>> two = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(50, 1), torch.tensor([0, 1]).repeat(50)
    >>> whole = chosen_beside(Chosen(9.0, 80), *two, fewest=2)
    >>> whole == chosen_beside(Chosen(1.0, 0), *two, fewest=2)
    True
    """
    targets = targets.to(logits.device)
    tells = logits.gather(1, targets.unsqueeze(1)).squeeze(1) > -math.inf
    logits, targets = logits[tells], targets[tells]
    shown = len(torch.unique(targets))
    if not len(targets) or shown < fewest:
        return None
    share = shown / int((logits > -math.inf).any(0).sum())
    old = before.pictures * (1 - share * min(1.0, len(targets) / ENOUGH_HELD))
    new = min(len(targets), ENOUGH_HELD * shown)
    now = fit_temperature(logits, targets, earlier=int(old))
    if now is None or (now > _FLAT and not old):
        return None
    mean = (old / before.temperature + new / now) / (old + new)
    return Chosen(1 / mean, int(old) + new)
