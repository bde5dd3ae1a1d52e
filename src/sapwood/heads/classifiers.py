"""Growing layers whose rows, one a class, are trained by gradients."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SMALL = 0.01

Groups = Sequence[Sequence[int]]
"""Old classes of each new class, never none: a class that is in no group goes, those of one group become one."""


def left_out(groups: Groups, count: Tensor) -> Tensor:
    """Which classes are in no group though they still have pictures, by their numbers [K]: [K] bool.

    >>> left_out([[0], [3]], torch.tensor([5, 0, 2, 1])).tolist()
    [False, False, True, False]
    """
    kept = {old for group in groups for old in group}
    return torch.tensor([old not in kept for old in range(len(count))], dtype=torch.bool) & (count.cpu() > 0)


class Classifier(nn.Module, ABC):
    """One row of ``weight`` [K, d] a class.

    Growing makes new Parameter objects (an optimiser must be built afterwards) whose first rows equal the old.
    A loss over some of the logits has gradient exactly zero at all other rows.
    """

    weight: nn.Parameter

    @property
    def classes(self) -> int:
        """Number of rows K."""
        return self.weight.shape[0]

    @property
    def by_class(self) -> dict[str, nn.Parameter]:
        """The parameters that have a row a class: the weight, and the bias where there is one."""
        return {name: self.get_parameter(name) for name in ("weight", "bias") if name in self._parameters}

    @abstractmethod
    def grow(self, count: int, generator: torch.Generator) -> None:
        """Append ``count`` rows."""

    def regroup(self, groups: Groups) -> None:
        """Keep one row a group, that of its first class: rows of two classes have no sum that means anything."""
        first = [group[0] for group in groups]
        for name, parameter in self.by_class.items():
            put_parameter(self, name, parameter.detach()[first])

    @contextmanager
    def stepping(self, scope: Tensor | None) -> Iterator[None]:
        """Around an optimiser step on a softmax over the rows ``scope`` (None: all): the other rows rest.

        A distillation from the network before the round has its minimum at their present values. What gradient they
        get is rounding, which an optimiser that divides by its size makes into full steps.
        """
        if scope is not None:
            for parameter in self.by_class.values():
                if parameter.grad is not None:
                    kept = parameter.grad[scope]
                    parameter.grad.zero_()[scope] = kept
        yield

    @torch.no_grad()
    def draw_idle(self, generator: torch.Generator) -> None:
        """Draw those rows at full size that are no longer than new ones of a linear layer may be."""
        idle = self.weight.norm(dim=1) <= _SMALL
        self.weight[idle] = _uniform_rows(int(idle.sum()), self.weight.shape[1], generator).to(self.weight)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, K] of features [n, d]."""


class LinearClassifier(Classifier):
    """logits = x W^T + b. New biases begin at 0, new rows next to it: at a hundredth of what is usual.

    A cross entropy among the classes of one round does not depend on the sum of their rows, which sets the round's
    logits off against those of other rounds: by much, and the same for all pictures, where features have a large common
    mean. So rows begin small, and steps keep their sum. A background that stands in every loss leaves no such gap. At
    zero itself the first step would pass by what the features come from.

    Args:
        size: new rows are drawn from U(-size, size) / sqrt(d).
    """

    def __init__(self, dim: int, *, size: float = _SMALL) -> None:
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.empty(0, dim))
        self.bias = nn.Parameter(torch.empty(0))

    def grow(self, count: int, generator: torch.Generator) -> None:
        """Append ``count`` rows."""
        rows = self.size * _uniform_rows(count, self.weight.shape[1], generator)
        self.weight = _append(self.weight, rows)
        self.bias = _append(self.bias, torch.zeros(count))

    @contextmanager
    def stepping(self, scope: Tensor | None) -> Iterator[None]:
        """Also keep the sum of the rows in ``scope``: their gradients add up to zero, steps of Adam do not."""
        rows = slice(None) if scope is None else scope
        before = [parameter.detach()[rows].mean(0) for parameter in self.by_class.values()]
        with super().stepping(scope):
            yield
        with torch.no_grad():
            for parameter, kept in zip(self.by_class.values(), before, strict=True):
                parameter[rows] -= parameter[rows].mean(0) - kept

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, K] of features [n, d]."""
        return F.linear(x, self.weight, self.bias)


class CosineClassifier(Classifier):
    """logits = scale * cos(x, W), the scale learned (Hou et al. 2019, LUCIR). New rows: U(-1, 1) / sqrt(d)."""

    def __init__(self, dim: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0, dim))
        self.scale = nn.Parameter(torch.tensor([float(scale)]))

    def grow(self, count: int, generator: torch.Generator) -> None:
        """Append ``count`` rows."""
        self.weight = _append(self.weight, _uniform_rows(count, self.weight.shape[1], generator))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, K] of features [n, d]."""
        return self.scale * F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))


def put_parameter(module: nn.Module, name: str, value: Tensor) -> None:
    """Give a module's parameter a new value: in place where the shape stays, else as a new Parameter."""
    old = module.get_parameter(name)
    if old.shape == value.shape:
        with torch.no_grad():
            old.copy_(value)
    else:
        setattr(module, name, nn.Parameter(value.to(old).clone(), requires_grad=old.requires_grad))


def _append(old: nn.Parameter, rows: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.cat([old.detach(), rows.to(old)]), requires_grad=old.requires_grad)


def _uniform_rows(count: int, dim: int, generator: torch.Generator) -> Tensor:
    """Drawn on the CPU, so that the same seed gives the same rows on every device."""
    return (2 * torch.rand(count, dim, generator=generator) - 1) / math.sqrt(dim)
