"""Elastic weight consolidation (Kirkpatrick et al., PNAS 2017, arXiv 1612.00796, eq. 3)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from torch import Tensor

from sapwood.functional.losses import fisher_diagonal, merge_fisher, quadratic_penalty, scoped_cross_entropy
from sapwood.objectives.base import Batches, Forward, Objective, Outputs, Parameters, Scope
from sapwood.objectives.pixels import PixelConfig, labelled_entropy
from sapwood.settings import check
from sapwood.task import Snapshot, Task


@dataclass(frozen=True)
class AnchorConfig:
    """Strength of the anchor and how its weights are measured.

    Attributes:
        strength: lambda, in front of 1/2 sum F (theta - theta*)^2.
        fisher_batch: pictures whose mean loss gives one squared gradient; 1 is the true diagonal. The usual
            implementation squares the gradient of whole batches, which makes it depend on their size.
        fisher_clip: upper bound of a Fisher entry; the usual implementation takes 1e-4; None for no bound.
        fisher_pictures: at most so many pictures of the round are used.
    """

    strength: float = 1000.0
    fisher_batch: int = 1
    fisher_clip: float | None = None
    fisher_pictures: int = 200

    def __post_init__(self) -> None:
        check(*self.rules())

    def rules(self) -> tuple[tuple[bool, str], ...]:
        """What must hold, and what to say otherwise."""
        return (
            (self.strength >= 0, f"objective.strength must be >= 0, got {self.strength}"),
            (self.fisher_batch >= 1, f"objective.fisher_batch must be >= 1, got {self.fisher_batch}"),
            (self.fisher_clip is None or self.fisher_clip > 0, "objective.fisher_clip must be > 0 or none"),
            (self.fisher_pictures >= 1, f"objective.fisher_pictures must be >= 1, got {self.fisher_pictures}"),
        )


@dataclass(frozen=True)
class EwcConfig(AnchorConfig):
    """For classification: the anchor's settings and one more.

    Attributes:
        scope: classes of the cross entropy.
    """

    scope: Scope = "own"


@dataclass(frozen=True)
class EwcPixelConfig(PixelConfig, AnchorConfig):
    """For segmentation: the settings of the anchor and of the pixels' cross entropy.

    The field's usual implementation (MiB's) adds 500 sum F d^2, hence strength 1000, to which the default is set. Its F
    is another quantity, though: a running mean of squared batch gradients, scaled to 0..1 within each parameter. Here
    F is the Fisher diagonal itself, one squared gradient a picture, whose loss is the mean over its pixels.
    """

    def rules(self) -> tuple[tuple[bool, str], ...]:
        """What must hold, and what to say otherwise."""
        return (*PixelConfig.rules(self), *AnchorConfig.rules(self))


class ElasticWeightConsolidation(Objective):
    """Holds each parameter near its value after earlier rounds, by how much their loss depended on it.

    Rounds are merged as F <- a F_old + (1 - a) F_new with a = old classes / (old + new classes), a round without new
    classes counting its own as new; rows of the head that did not exist before keep F_new. The anchor is the value
    with which a round ends, after a head is aligned or branches merge; what is no more is no longer anchored.
    """

    Config = EwcConfig
    SegmentationConfig = EwcPixelConfig
    summary = "cross entropy + Fisher-weighted distance to the parameters of earlier rounds"
    growth = "nothing (two copies of the trained parameters)"

    def __init__(self, config: AnchorConfig) -> None:
        super().__init__(config)
        self.fisher: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        self.classes = 0

    def loss(self, outputs: Outputs, targets: Tensor, teacher: Outputs | None, task: Task) -> Tensor:
        """Mean cross entropy over the scope, of pixels over all channels; the anchor is in ``penalty``."""
        if isinstance(self.config, PixelConfig):
            return labelled_entropy(outputs, targets, self.config)
        return scoped_cross_entropy(outputs.logits, targets, self.scope_of(task, outputs.logits.shape[1]))

    def penalty(self, parameters: Parameters) -> Tensor | None:
        """strength/2 * sum F (theta - theta*)^2 over the entries that existed at the anchor."""
        anchors = {name: anchor for name, anchor in self.anchor.items() if name in parameters}
        if not anchors:
            return None
        return self.config.strength * quadratic_penalty(parameters, anchors, self.fisher)

    def after_task(self, parameters: Parameters, batches: Batches, forward: Forward, task: Task) -> None:
        """Measure the Fisher diagonal on the round's pictures."""
        config = self.config
        classes = task.known

        def losses() -> Iterator[Tensor]:
            for batch in islice(batches(config.fisher_batch), math.ceil(config.fisher_pictures / config.fisher_batch)):
                logits = forward(batch)
                yield self.loss(Outputs(logits), batch.targets.to(logits.device), None, task)

        new = fisher_diagonal(losses(), parameters, config.fisher_clip)
        brought = len(task.new) or len(task.annotated)  # a round of known classes counts too
        self.fisher = merge_fisher(self.fisher, new, self.classes / (self.classes + brought))
        self.classes = classes

    def settle(self, parameters: Parameters) -> None:
        """Move the anchor."""
        self.fisher = {name: fisher for name, fisher in self.fisher.items() if name in parameters}
        self.anchor = {name: parameters[name].detach().clone() for name in self.fisher}

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
