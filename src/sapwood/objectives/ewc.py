"""Elastic weight consolidation (Kirkpatrick et al., PNAS 2017, arXiv 1612.00796, eq. 3)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from torch import Tensor

from sapwood.functional.losses import fisher_diagonal, merge_fisher, quadratic_penalty, scoped_cross_entropy
from sapwood.objectives.base import Batches, Forward, Objective, Parameters, Scope
from sapwood.settings import check
from sapwood.task import Snapshot, Task


@dataclass(frozen=True)
class EwcConfig:
    """Strength of the anchor and how its weights are measured.

    Attributes:
        strength: lambda, in front of 1/2 sum F (theta - theta*)^2.
        fisher_batch: pictures whose mean loss gives one squared gradient; 1 is the true diagonal. The usual
            implementation squares the gradient of whole batches, which makes it depend on their size.
        fisher_clip: upper bound of a Fisher entry; the usual implementation takes 1e-4; None for no bound.
        fisher_pictures: at most so many pictures of the round are used.
        scope: classes of the cross entropy.
    """

    strength: float = 1000.0
    fisher_batch: int = 1
    fisher_clip: float | None = None
    fisher_pictures: int = 200
    scope: Scope = "own"

    def __post_init__(self) -> None:
        check(
            (self.strength >= 0, f"objective.strength must be >= 0, got {self.strength}"),
            (self.fisher_batch >= 1, f"objective.fisher_batch must be >= 1, got {self.fisher_batch}"),
            (self.fisher_clip is None or self.fisher_clip > 0, "objective.fisher_clip must be > 0 or none"),
            (self.fisher_pictures >= 1, f"objective.fisher_pictures must be >= 1, got {self.fisher_pictures}"),
        )


class ElasticWeightConsolidation(Objective):
    """Holds each parameter near its value after earlier rounds, by how much their loss depended on it.

    Rounds are merged as F <- a F_old + (1 - a) F_new with a = old classes / (old + new classes), a round without new
    classes counting its own as new; rows of the head that did not exist before keep F_new. The anchor is the latest
    value.
    """

    Config = EwcConfig
    summary = "cross entropy + Fisher-weighted distance to the parameters of earlier rounds"
    growth = "nothing (two copies of the trained parameters)"

    def __init__(self, config: EwcConfig) -> None:
        super().__init__(config)
        self.fisher: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        self.classes = 0

    def loss(self, logits: Tensor, targets: Tensor, teacher: Tensor | None, task: Task) -> Tensor:
        """Mean cross entropy over the scope; the anchor is in ``penalty``."""
        return scoped_cross_entropy(logits, targets, self.scope_of(task, logits.shape[1]))

    def penalty(self, parameters: Parameters) -> Tensor | None:
        """strength/2 * sum F (theta - theta*)^2 over the entries that existed at the anchor."""
        anchors = {name: anchor for name, anchor in self.anchor.items() if name in parameters}
        if not anchors:
            return None
        return self.config.strength * quadratic_penalty(parameters, anchors, self.fisher)

    def after_task(self, parameters: Parameters, batches: Batches, forward: Forward, task: Task) -> None:
        """Measure the Fisher diagonal on the round's pictures and move the anchor."""
        config = self.config
        classes = task.known

        def losses() -> Iterator[Tensor]:
            for batch in islice(batches(config.fisher_batch), math.ceil(config.fisher_pictures / config.fisher_batch)):
                logits = forward(batch)
                yield self.loss(logits, batch.targets.to(logits.device), None, task)

        new = fisher_diagonal(losses(), parameters, config.fisher_clip)
        brought = len(task.new) or len(task.annotated)  # a round of known classes counts too
        self.fisher = merge_fisher(self.fisher, new, self.classes / (self.classes + brought))
        self.anchor |= {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self.classes = classes

    def state(self) -> Snapshot:
        """Fisher and anchor of every parameter."""
        tensors = {f"fisher.{name}": tensor for name, tensor in self.fisher.items()}
        tensors |= {f"anchor.{name}": tensor for name, tensor in self.anchor.items()}
        return tensors, {"classes": self.classes}

    def load(self, snapshot: Snapshot) -> None:
        """Restore Fisher and anchor."""
        tensors, meta = snapshot
        self.fisher = {name[7:]: tensor for name, tensor in tensors.items() if name.startswith("fisher.")}
        self.anchor = {name[7:]: tensor for name, tensor in tensors.items() if name.startswith("anchor.")}
        self.classes = meta.get("classes", 0)
