"""Ridge regression on sums over all rounds, with an optional random projection (RanPAC)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from sapwood.functional.balance import balanced_sums
from sapwood.functional.openset import Sums, folds, held_of
from sapwood.functional.statistics import exact, pack_triangle, ridge_solve, unpack_triangle
from sapwood.functional.streaming import add_class_sums
from sapwood.heads.base import Features, PooledHead, needed
from sapwood.heads.classifiers import Groups, left_out
from sapwood.heads.reading import Expanded, answers, asked
from sapwood.heads.settings import PooledConfig, fault_unless_int, fault_unless_number, refuse
from sapwood.heads.strength import STRENGTHS, Evidence
from sapwood.heads.tensors import ENOUGH_HELD

__all__ = ["STRENGTHS", "RidgeConfig", "RidgeHead"]

_FOLDS = 5


@dataclass(frozen=True)
class RidgeConfig(PooledConfig):
    """Settings of the ridge head.

    Attributes:
        projection: width M of the random projection h = relu(x W); None keeps the sums in feature space (h = x).
        strength: of the regularisation; None chooses it anew in every round.
        drift, drift_strength: see ``PooledConfig``; ``linear`` needs ``projection = None``.
    """

    projection: int | None = None
    strength: float | None = None

    def __post_init__(self) -> None:
        faults = self.pooled_faults()
        if self.projection is not None:
            faults += fault_unless_int("projection", self.projection, 1)
            if self.drift == "linear":
                faults += ["drift=linear carries sums in feature space; it needs projection=None"]
        if self.strength is not None:
            faults += fault_unless_number("strength", self.strength)
        refuse("ridge", faults)


class RidgeHead(PooledHead):
    """logits = h W with W = (G + strength I)^-1 C, no bias, no normalisation (RanPAC, McDonnell et al. 2023).

    h = x, or relu(x R) with a fixed R ~ N(0, 1) [d, M]. G = sum h h^T and C = sum h onehot(y)^T run over all
    pictures of all rounds in float64, so that rounds in any order and split give the same solution.

    ``balanced`` solves with the sums as they would be if all classes had equally many pictures, assuming that all
    spread alike around their means (``functional.balance.balanced_sums``). They follow from the sums that are kept, so
    that this holds too, and so do repairs.

    The strength is chosen in every round from 1e-8..1e8 by the squared error of one-hot targets: see
    ``heads.strength``; without anything to try it on it is the mean diagonal entry of G. The temperature is chosen on
    validation pictures before they join the sums if they are ``ENOUGH_HELD``, else by taking a fifth of all the round's
    pictures at a time out of the sums.
    """

    name: ClassVar[str] = "ridge"
    fitted: ClassVar[Literal["gradient", "statistics"]] = "statistics"
    Config: ClassVar[type] = RidgeConfig
    summary: ClassVar[str] = "ridge regression on sums over all rounds (RanPAC)"
    growth: ClassVar[str] = (
        "one row a class in classifier, solution and cross term; the Gram matrix stays M(M+1)/2; with a projection, to "
        "tell unknown pictures, d + 1 a class beside d(d+1)/2, in float64; where the backbone stays, the features of a "
        "round's pictures too, up to 8 MB"
    )
    calibrates: ClassVar[bool] = True

    packed_gram: Tensor
    cross: Tensor
    count: Tensor
    solution: Tensor
    projection: Tensor

    def __init__(self, config: RidgeConfig, dim: int) -> None:
        super().__init__(config, dim)
        self.width = config.projection or dim
        self.strength: float | None = config.strength
        self.evidence = Evidence()
        self.seed: int | None = None
        # The sums are no buffers: they stay on the CPU in float64, whatever device or dtype the network moves to.
        self.packed_gram = torch.zeros(self.width * (self.width + 1) // 2, dtype=torch.float64)
        self.cross = torch.zeros(self.width, 0, dtype=torch.float64)
        self.count = torch.zeros(0, dtype=torch.int64)
        self.register_buffer("solution", torch.zeros(self.width, 0), persistent=False)
        self.register_buffer("projection", torch.zeros(0, 0), persistent=False)

    @property
    def wants_features(self) -> bool:
        """Always: the sums are made of them."""
        return True

    @property
    def gram(self) -> Tensor:
        """G [M, M]."""
        return unpack_triangle(self.packed_gram)

    @property
    def keeps_sums(self) -> bool:
        """Whether they are in feature space."""
        return self.config.projection is None

    @property
    def sums(self) -> Sums:
        """Of all features; the head's own where they are in feature space."""
        return Sums(self.cross.T, self.count, self.gram) if self.keeps_sums else super().sums

    def summed(self) -> tuple[Tensor, ...]:
        """Those of the head where ``sums`` are its own."""
        return (self.cross, self.count, self.packed_gram) if self.keeps_sums else super().summed()

    def expand(self, x: Tensor) -> Tensor:
        """h [n, M] of features [n, d]."""
        return x if self.config.projection is None else torch.relu(x @ self.projection)

    def logits(self, x: Tensor) -> Tensor:
        """Prediction logits [n, K] of features [n, d]; zeros before the first ``fit``."""
        if self.config.projection is not None and self.seed is None:
            return x.new_zeros(x.shape[0], self.classes)
        return self.expand(x) @ self.solution

    def grow_statistics(self, count: int) -> None:
        """Append zero columns for new classes."""
        self.cross = torch.cat([self.cross, self.cross.new_zeros(self.width, count)], dim=1)
        self.count = torch.cat([self.count, self.count.new_zeros(count)])
        self.solution = torch.cat([self.solution, self.solution.new_zeros(self.width, count)], dim=1)

    def carry(self, P: Tensor) -> None:
        """G <- P G P^T and C <- P C."""
        if self.config.projection is not None:
            raise ValueError("sums behind a random projection cannot be carried; use projection=None")
        P = P.detach().cpu().double()
        self.packed_gram = pack_triangle(P @ self.gram @ P.T)
        self.cross = P @ self.cross

    def fit(self, train: Features, validation: Features | None, generator: torch.Generator) -> dict[str, Any]:
        """Choose strength and temperature, add the round's pictures to the sums, solve."""
        if self.config.projection is not None and self.seed is None:
            self._draw_projection(int(torch.randint(2**31 - 1, (1,), generator=generator)))
        shown = self._expanded(train)
        held = self._expanded(validation) if validation is not None and len(validation.y) else None
        facts: dict[str, Any] = {}
        self._add(shown)
        if self.config.strength is None:
            chosen, facts["held_out"] = self.evidence.choose(shown, held, balanced=self.balanced)
            if chosen is None:
                chosen, facts["held_out"] = self.evidence.choose_beside(self.gram, self.cross, self.count, shown)
            self.strength = chosen or self.strength
        if held is not None:
            solution = self.solve().to(self.solution.device if self.solution.is_cuda else "cpu")
            facts["validation_accuracy"], told = answers(held, lambda h: h @ solution, self.classes)
            self._add(held)
        if held is not None and len(held) >= ENOUGH_HELD:
            self.calibrate_temperature(*told)
        else:
            self._calibrate_by_turns(shown if held is None else shown.joined(held))
        self.settle()
        return {**facts, "strength": self.strength, "temperature": self.temperature}

    @property
    def shares_sums(self) -> bool:
        """Whether what is kept of classes together holds their pictures: the Gram matrix does."""
        return True

    def observe(self, features: Features) -> None:
        """Add pictures to the sums; ``settle`` solves."""
        self._add(self._expanded(features))
        self.known.observe(*self.checked(features))

    def join(self, held: Features) -> None:
        """See ``Joins``."""
        self._add(self._expanded(held))
        self.settle()

    def forget(self, features: Features) -> None:
        """Take pictures that were observed under these classes out of the sums again; ``settle`` solves."""
        self._add(self._expanded(features), -1)
        self.known.observe(*self.checked(features), -1)
        self.cross[:, self.count == 0] = 0.0  # not what rounding left of it

    def clear(self) -> None:
        """Take all pictures out of the sums; classes, projection, strength and temperature stay."""
        for sums in (self.packed_gram, self.cross, self.count):
            sums.zero_()
        self.known.clear()

    def regroup(self, groups: Groups) -> None:
        """Make each new class of the old ones in its group; ``settle`` solves.

        As if a group's pictures had always been of one class. Of a class that goes, and that ``forget`` did not take
        out before, the Gram matrix loses what it would hold if the class were spread as all are.
        """
        if (gone := left_out(groups, self.count)).any():
            self.packed_gram -= pack_triangle(held_of(Sums(self.cross.T, self.count, self.gram), gone))
        self.classifier.regroup(groups)
        self.known.regroup(groups)
        self.cross = torch.stack([self.cross[:, list(group)].sum(1) for group in groups], 1)
        self.count = torch.stack([self.count[list(group)].sum() for group in groups])
        self.solution = self.solution.new_zeros(self.width, len(groups))

    def settle(self) -> None:
        """Predict from the sums as they are now."""
        self.solution = self.solve().to(self.solution).contiguous()  # as after loading, to the last bit

    def solve(self) -> Tensor:
        """W = (G + strength I)^-1 C, [M, K] float64 on the CPU."""
        return self._solve_of(self.gram, self.cross, self.count)

    def _solve_of(self, gram: Tensor, cross: Tensor, count: Tensor) -> Tensor:
        if self.balanced:
            gram, cross = balanced_sums(gram, cross, count)
        return ridge_solve(gram, cross, self._strength())

    def _expanded(self, features: Features) -> Expanded:
        """In float64: products in float32 would differ in their last digits with the pictures beside a picture."""
        projection = None if self.config.projection is None else exact(self.projection)

        def expand(x: Tensor) -> Tensor:
            h = exact(x.to(self.solution.device))
            return h if projection is None else torch.relu(h @ projection)

        return Expanded(*self.checked(features), expand)

    def _strength(self) -> float:
        return self.strength or self.gram.diagonal().mean().item() or 1.0

    def _calibrate_by_turns(self, train: Expanded) -> None:
        """Choose the temperature on pictures that are in the sums, a fifth taken out at a time."""
        if not bool((self.count[train.y] > 1).any()):
            return
        gram, logits, order = self.gram, [], []
        wanted = torch.zeros(len(train), dtype=torch.bool)
        wanted[asked(len(train), self.classes)] = True
        for part in folds(train.y, _FOLDS):
            held = self._sums_of(train.at(part))
            count = self.count - torch.bincount(train.y[part], minlength=self.classes)
            solution = self._solve_of(gram - held[0], self.cross - held[1], count)
            for x, y in train.at(part[wanted[part]]):
                # A class without pictures is no answer.
                logits.append((x.cpu() @ solution).masked_fill(count == 0, -torch.inf))
                order.append(y.cpu())
        self.calibrate_temperature(torch.cat(logits), torch.cat(order))

    def _sums_of(self, data: Iterable[Features]) -> tuple[Tensor, Tensor]:
        """Gram matrix [M, M] and cross term [M, K] on the CPU, added up over blocks."""
        gram = total = torch.zeros(())
        for number, (x, y) in enumerate(data):
            if not number:
                gram, total = x.new_zeros(self.width, self.width), x.new_zeros(self.classes, self.width)
            gram += x.T @ x
            add_class_sums(total, x, y)
        return gram.cpu(), total.T.cpu()

    def _add(self, data: Expanded, sign: int = 1) -> None:
        gram, cross = self._sums_of(data)
        self.packed_gram += sign * pack_triangle(gram)
        self.cross += sign * cross
        self.count += sign * torch.bincount(data.y, minlength=self.classes)

    def _draw_projection(self, seed: int) -> None:
        # numpy promises that this legacy stream never changes, so a seed in the state stands for the matrix.
        drawn = np.random.RandomState(seed).standard_normal((self.dim, self.width)).astype(np.float32)
        self.seed = seed
        self.projection = torch.from_numpy(drawn).to(self.solution.device)

    def kept_statistics(self) -> dict[str, Tensor]:
        """Upper triangle of G and C in float64, and the number of pictures a class."""
        return {"gram": self.packed_gram, "cross": self.cross, "count": self.count}

    def solved_tensors(self) -> dict[str, Tensor]:
        """W in float32."""
        return {"solution": self.solution}

    def meta(self) -> dict[str, Any]:
        """Classes, temperature, strength and what it was chosen by, and the projection's seed."""
        errors = self.evidence.errors.tolist()
        return {**super().meta(), "strength": self.strength, "strength_errors": errors, "projection_seed": self.seed}

    def load_statistics(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Restore sums and solution; the projection is drawn again from its seed."""
        self.packed_gram = needed(tensors, "gram", tuple(self.packed_gram.shape)).double().clone()
        self.cross = needed(tensors, "cross", (self.width, self.classes)).double().clone()
        self.count = needed(tensors, "count", (self.classes,)).clone()
        self.solution = needed(tensors, "solution", (self.width, self.classes)).to(self.solution)
        self.strength = meta["strength"]
        self.evidence.load(meta.get("strength_errors"))
        self.seed = None
        if meta["projection_seed"] is not None:
            self._draw_projection(int(meta["projection_seed"]))
