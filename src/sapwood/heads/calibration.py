"""The temperature of a head: on which pictures it is chosen, and how little a few of them may change."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sapwood.functional.openset import Sums, shared_gaussians
from sapwood.functional.statistics import fit_temperature
from sapwood.heads.tensors import ENOUGH_HELD, Features

_DRAWN = 1000
"""Features drawn in all; two of a class at least."""


class Chosen(NamedTuple):
    """A temperature, and the number of held-out pictures that it was chosen on."""

    temperature: float
    pictures: int


def chosen_on(logits: Tensor, targets: Tensor) -> Chosen | None:
    """By negative log likelihood on held-out pictures; None where those that can tell are not of two classes.

    What makes one class likely on its own pictures says nothing of others. A picture whose true class is ruled out
    (logit -inf) cannot tell.

    Args:
        logits: [n, K], as for ``fit_temperature``.
        targets: [n] int64.
    """
    targets = targets.to(logits.device)
    tells = logits.gather(1, targets.unsqueeze(1)).squeeze(1) > -math.inf
    if len(torch.unique(targets[tells])) < 2:
        return None
    found = fit_temperature(logits[tells], targets[tells])
    return None if found is None else Chosen(found, int(tells.sum()))


def weighed(before: Chosen, now: Chosen) -> Chosen:
    """What a round's pictures say, beside what was chosen before: ``ENOUGH_HELD`` speak for themselves.

    Fewer are averaged with those before, as logarithms; each picture weighs the same, at most ``ENOUGH_HELD`` count.

    >>> weighed(Chosen(4.0, 30), Chosen(1.0, 30)), weighed(Chosen(1.0, 0), Chosen(2.0, 3))
    (Chosen(temperature=2.0, pictures=60), Chosen(temperature=2.0, pictures=3))
    >>> weighed(Chosen(4.0, 100), Chosen(1.0, 100))
    Chosen(temperature=1.0, pictures=100)
    """
    if now.pictures >= ENOUGH_HELD or not before.pictures:
        return Chosen(now.temperature, min(ENOUGH_HELD, now.pictures))
    total = before.pictures + now.pictures
    mean = (before.pictures * math.log(before.temperature) + now.pictures * math.log(now.temperature)) / total
    return Chosen(math.exp(mean), min(ENOUGH_HELD, total))


def drawn(sums: Sums, generator: torch.Generator) -> Features | None:
    """Features as the known classes would have them if each were a Gaussian around its mean, all spread alike.

    For where no picture can tell: rounds of one class each. None where no class has two pictures, or there is only one.

    Args:
        sums: over all pictures.
        generator: on the CPU.
    """
    gaussians, present = shared_gaussians(sums), (sums.count > 0).nonzero().flatten().cpu()
    if gaussians is None or len(present) < 2:
        return None
    places = torch.arange(len(present)).repeat_interleave(max(2, _DRAWN // len(present)))
    noise = torch.randn(len(places), gaussians.mean.shape[1], generator=generator, dtype=torch.float64)
    x = gaussians.mean.cpu()[places] + noise @ gaussians.factor.cpu().T
    return Features(x.float(), present[places])
