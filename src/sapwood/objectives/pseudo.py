"""Learning from labels that the network before the round gives to background pixels; PLOP and SATS share it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sapwood.functional.pseudo import Entropy, Median, entropy_thresholds, pseudo_labels
from sapwood.objectives.base import Objective, Told
from sapwood.objectives.pixels import HeadInit, PixelConfig, among, averaged, start_from_background
from sapwood.task import Task

if TYPE_CHECKING:
    from sapwood.heads.base import Head


@dataclass(frozen=True)
class PseudoConfig(PixelConfig):
    """Which predictions become labels, and how the pixels' cross entropy is averaged.

    Attributes:
        ce_denominator: as for any objective; a background pixel whose prediction is too uncertain counts as ignored.
        entropy: uncertainty of a prediction: ``sum``, its entropy divided by that of a uniform one; ``mean``, PLOP's
            code, smaller by the number of old channels and the logarithm of that of all.
        median: a class's threshold is the median over the background pixels that are predicted as it: ``exact``, or
            ``official_histogram``, what PLOP's code computes (right only where the median is below 0.01).
        threshold: no class's threshold is lower; None: 0.05 for ``sum``, 0.001 (PLOP's) for ``mean``.
        adaptive_factor: a picture's cross entropy is multiplied by the share of its background pixels that are certain.
        head_init: where new rows of the head begin, as ``mib`` has it.
    """

    entropy: Entropy = "sum"
    median: Median = "exact"
    threshold: float | None = None
    adaptive_factor: bool = True
    head_init: HeadInit = "balanced"

    def rules(self) -> tuple[tuple[bool, str], ...]:
        """What must hold, and what to say otherwise."""
        low = 0.0 if self.threshold is None else self.threshold
        return (
            *super().rules(),
            among("entropy", self.entropy, Entropy),
            among("median", self.median, Median),
            (0 <= low < math.inf, f"objective.threshold must be >= 0 and finite, or null, got {self.threshold}"),
            among("head_init", self.head_init, HeadInit),
        )


class PseudoLabelled(Objective):
    """Base of the objectives whose background pixels are labelled by the network before the round.

    Only pixels labelled 0 are; a class that the round annotates, new or known, is none of the answers there, since such
    a pixel would have been labelled so (the official codes never annotate a known class again). Thresholds are measured
    once a round, on plain views of its training pictures; the official code measures them on augmented ones.
    """

    kinds = frozenset({"segmentation"})
    needs = frozenset({"teacher"})

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.thresholds: Tensor | None = None

    def initialise(self, head: Head, task: Task) -> None:
        """Start the rows of the round's new classes from the background's."""
        start_from_background(head, task, self.config.head_init)

    def before_task(self, batches: Callable[[], Iterable[Any]], told: Told, task: Task) -> None:
        """Measure the thresholds of the old channels; the first round has none."""
        self.thresholds = None
        if task.index == 0:
            return

        def pairs() -> Iterator[tuple[Tensor, Tensor]]:
            for batch in batches():
                teacher = told(batch)
                if teacher is None:
                    raise ValueError("pseudo-labels need what the network before the round says")
                yield unannotated(teacher.logits, task), batch.targets.to(teacher.logits.device)

        config = self.config
        self.thresholds = entropy_thresholds(
            pairs(), entropy=config.entropy, channels=task.known, median=config.median, minimum=config.threshold
        )

    def relabelled(self, targets: Tensor, teacher_logits: Tensor, task: Task) -> tuple[Tensor, Tensor | None]:
        """(targets [B, H, W] with pseudo-labels, 255 where uncertain; factor [B] of each picture or None for 1)."""
        if self.thresholds is None:
            raise ValueError("pseudo-labels need thresholds: before_task has not been called in this round")
        labels, share = pseudo_labels(
            unannotated(teacher_logits, task),
            targets,
            self.thresholds,
            entropy=self.config.entropy,
            channels=task.known,
        )
        return labels, share if self.config.adaptive_factor else None

    def averaged(self, entropy: Tensor, labels: Tensor, factor: Tensor | None) -> Tensor:
        """The pixels' cross entropy [B, H, W] as one number, each picture's times its factor."""
        if factor is not None:
            entropy = entropy * factor.to(entropy)[:, None, None]
        return averaged(entropy, labels, self.config)


def unannotated(logits: Tensor, task: Task) -> Tensor:
    """The teacher's logits [B, K, H, W] with -inf for the known classes that the round annotates."""
    shut = [channel for channel in task.annotated if channel < logits.shape[1]]
    return logits.index_fill(1, torch.tensor(shut, device=logits.device), -math.inf) if shut else logits
