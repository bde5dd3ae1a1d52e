"""What training minimises."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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


@dataclass(frozen=True)
class Outputs:
    """What a network says of a batch.

    Attributes:
        logits: [B, K]; of a segmentation [B, K, H, W], at the targets' size. A teacher's have K_old channels.
        features: patch tokens [B, N, d]; only where the objective needs them.
    """

    logits: Tensor
    features: Tensor | None = None


class Objective:
    """Base of all objectives.

    Classification has a ``scope``: ``own`` (a softmax over the classes that have pictures in this round) or ``seen``
    (over all classes so far). It moves results by many points, so every objective has it and every table prints it.
    In a segmentation the softmax holds all channels; there ``ce_denominator`` is what implementations differ in.

    Class attributes:
        kinds: tasks it can learn: ``classification``, ``segmentation``.
        Config: settings; those of classification where ``SegmentationConfig`` is there too.
        SegmentationConfig: settings for segmentation, where they differ.
        needs: what the training loop computes for the loss: ``teacher``, the outputs of the network before the round;
            ``features``, the patch tokens.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"classification", "segmentation"})
    Config: ClassVar[type]
    SegmentationConfig: ClassVar[type | None] = None
    summary: ClassVar[str]
    growth: ClassVar[str] = "nothing"
    needs: ClassVar[frozenset[str]] = frozenset()

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

    def state(self) -> Snapshot:
        """Tensors and JSON kept between rounds; empty for most."""
        return {}, {}

    def load(self, snapshot: Snapshot) -> None:
        """Restore what ``state`` gave."""

    def scope_of(self, task: Task, classes: int) -> Tensor | None:
        """Class indices of the softmax, or None for all."""
        if self.config.scope == "seen" or len(task.annotated) == classes:
            return None
        return torch.tensor(task.annotated)
