"""The temperature of a head: on which pictures it is chosen, and how little a few of them may change."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sapwood.functional.statistics import fit_temperature
from sapwood.heads.tensors import ENOUGH_HELD


class Chosen(NamedTuple):
    """A temperature, and the number of held-out pictures that it was chosen on."""

    temperature: float
    pictures: int


def chosen_on(logits: Tensor, targets: Tensor, fewest: int, earlier: int = 0) -> Chosen | None:
    """By negative log likelihood on held-out pictures; None where those that can tell are of too few classes.

    A picture whose true class is ruled out (logit -inf) cannot tell.

    Args:
        logits: [n, K], as for ``fit_temperature``.
        targets: [n] int64.
        fewest: classes that they must be of.
        earlier: pictures that told before; see ``fit_temperature``. ``ENOUGH_HELD`` speak for themselves.
    """
    targets = targets.to(logits.device)
    tells = logits.gather(1, targets.unsqueeze(1)).squeeze(1) > -math.inf
    if len(torch.unique(targets[tells])) < fewest:
        return None
    pictures = int(tells.sum())
    found = fit_temperature(logits[tells], targets[tells], earlier if pictures < ENOUGH_HELD else 0)
    return None if found is None else Chosen(found, pictures)


def weighed(before: Chosen, now: Chosen) -> Chosen:
    """What a round's pictures say, beside what was chosen before: ``ENOUGH_HELD`` speak for themselves.

    Fewer are averaged with those before; each picture weighs the same, at most ``ENOUGH_HELD`` count. The mean is of
    1 / T, in which the likelihood is convex: a few pictures, all taken for others, ask for a T without end.

    >>> weighed(Chosen(4.0, 30), Chosen(1.0, 30)), weighed(Chosen(1.0, 0), Chosen(2.0, 3))
    (Chosen(temperature=1.6, pictures=60), Chosen(temperature=2.0, pictures=3))
    >>> weighed(Chosen(4.0, 100), Chosen(1.0, 100))
    Chosen(temperature=1.0, pictures=100)
    """
    if now.pictures >= ENOUGH_HELD or not before.pictures:
        return Chosen(now.temperature, min(ENOUGH_HELD, now.pictures))
    total = before.pictures + now.pictures
    mean = (before.pictures / before.temperature + now.pictures / now.temperature) / total
    return Chosen(1 / mean, min(ENOUGH_HELD, total))
