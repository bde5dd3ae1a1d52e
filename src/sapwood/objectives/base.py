"""What training minimises."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sapwood.task import Snapshot, Task

if TYPE_CHECKING:
    from sapwood.heads.base import Head

Scope = Literal["own", "seen"]
Parameters = dict[str, nn.Parameter]
Forward = Callable[[Any], Tensor]
Batches = Callable[[int], Iterable[Any]]

NEEDS = frozenset({"teacher", "features", "maps", "grid", "attention", "saliency", "parts"})
"""What an objective may ask for: the teacher, and fields of ``Outputs``."""


@dataclass(frozen=True)
class Outputs:
    """What a network says of a batch; all but the logits only where the objective needs them.

    Attributes:
        logits: [B, K]; of a segmentation [B, K, H, W], at the targets' size, [B, K + 1, H, W] of a head that has an
            unknown class (last). A teacher's have K_old channels.
        features: patch tokens [B, N, d].
        maps: feature maps [B, c, h, w]: those of the encoder's blocks or stages in order, then the classifier's input.
        grid_logits: the logits [B, C, h, w] before they are brought to the targets' size.
        attention: softmax maps [B, heads, L, S] of some blocks; L patches row-major as queries, S keys (the prefix
            tokens before the patches; fewer than L where the block reduces them).
        saliency: no gradient, >= 0: [B, h, w], how much of the network's own attention each patch has; or [B, H, W],
            the map that came with each picture.
        parts: (z+, z-), each [B, K, h, w]: the classifier's input times max(w, 0) and min(w, 0) of each class, no bias.
    """

    logits: Tensor
    features: Tensor | None = None
    maps: tuple[Tensor, ...] = ()
    grid_logits: Tensor | None = None
    attention: tuple[Tensor, ...] = ()
    saliency: Tensor | None = None
    parts: tuple[Tensor, Tensor] | None = None


Told = Callable[[Any], Outputs | None]


class Objective:
    """Base of all objectives.

    Classification has a ``scope``: ``own`` (a softmax over the classes that have pictures in this round) or ``seen``
    (over all classes so far). It moves results by many points, so every objective has it and every table prints it.
    In a segmentation the softmax holds all channels; there ``ce_denominator`` is what implementations differ in.

    Class attributes:
        kinds: tasks it can learn: ``classification``, ``segmentation``.
        Config: settings; those of classification where ``SegmentationConfig`` is there too.
        SegmentationConfig: settings for segmentation, where they differ.
        needs: what is computed for the loss, a subset of ``NEEDS``: ``teacher``, the outputs of the network before the
            round; ``grid``, ``Outputs.grid_logits``; the others are fields of ``Outputs``. The teacher's get the same;
            where there should be one and is none, in the first round, ``saliency`` alone is computed. Settings may
            take away from it.
        head: settings of the dense head that the objective cannot do without.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"classification", "segmentation"})
    Config: ClassVar[type]
    SegmentationConfig: ClassVar[type | None] = None
    summary: ClassVar[str]
    growth: ClassVar[str] = "nothing"
    needs: frozenset[str] = frozenset()
    head: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def config_type(cls, kind: str) -> type:
        """The settings for a kind of task that is among ``kinds``."""
        return cls.SegmentationConfig if kind == "segmentation" and cls.SegmentationConfig else cls.Config

    def initialise(self, head: Head, task: Task) -> None:
        """Set the head's new rows, once, after it has grown and before the first step of a later round.

        The teacher must have been cloned before: rows of old classes may change too.
        """

    def before_task(self, batches: Callable[[], Iterable[Any]], told: Told, task: Task) -> None:
        """Look at the round's pictures once, after ``initialise`` and before the first step.

        Args:
            batches: goes through the training pictures in plain views; a batch has ``targets``.
            told: the teacher's logits (as in ``Outputs``, nothing else) for such a batch; None in the first round and
                where ``needs`` does not name it.
            task: the round.
        """

    def stays(self, task: Task) -> bool:
        """Whether adapter and decoder are left as they are in this round."""
        return False

    def stepping(self, head: Head, task: Task) -> AbstractContextManager[object]:
        """Entered around every optimiser step; of pictures, see ``Classifier.stepping``."""
        if head.kind == "segmentation":
            return nullcontext()
        return head.classifier.stepping(self.scope_of(task, head.classes))

    def loss(self, outputs: Outputs, targets: Tensor, teacher: Outputs | None, task: Task) -> Tensor:
        """Scalar, nats a picture or a pixel.

        Args:
            outputs: the student's.
            targets: int64 [B]; of a segmentation uint8 or int64 [B, H, W], channels or 255.
            teacher: the teacher's; None in the first round and where ``needs`` does not name it.
            task: the round.
        """
        raise NotImplementedError

    def penalty(self, parameters: Parameters) -> Tensor | None:
        """A term on the parameters themselves; None for none."""
        return None

    def after_task(self, parameters: Parameters, batches: Batches, forward: Forward, task: Task) -> None:
        """Remember what later rounds need.

        ``batches(size)`` goes through the round's pictures once, ``size`` at a time; ``forward`` gives the training
        logits (as in ``Outputs``) of such a batch, whose targets are ``batch.targets``.
        """

    def settle(self, parameters: Parameters) -> None:
        """See the trained parameters that live on as the round leaves them: branches merged, the head aligned."""

    def state(self) -> Snapshot:
        """Tensors and JSON kept between rounds; empty for most."""
        return {}, {}

    def load(self, snapshot: Snapshot) -> None:
        """Restore what ``state`` gave."""

    def scope_of(self, task: Task, classes: int) -> Tensor | None:
        """Class indices of the softmax, or None for all; settings without a ``scope`` mean all seen classes."""
        if getattr(self.config, "scope", "seen") == "seen" or len(task.annotated) == classes:
            return None
        return torch.tensor(task.annotated)
