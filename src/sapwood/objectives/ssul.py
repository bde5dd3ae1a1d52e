"""SSUL: segmentation with an unknown label (Cha et al., NeurIPS 2021, arXiv 2106.11562; settings of its code)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sapwood.functional.resize import at_size
from sapwood.heads.base import Head
from sapwood.heads.decoders import ConvNorm
from sapwood.heads.dense import DenseHead
from sapwood.objectives.base import Objective, Outputs
from sapwood.objectives.pixels import PixelConfig, among, averaged
from sapwood.objectives.pseudo import unannotated
from sapwood.task import Task

UnknownRule = Literal["salient", "background"]
_IGNORE = 255


@dataclass(frozen=True)
class SsulConfig(PixelConfig):
    """What is unknown, what becomes a pseudo-label, and what stands still.

    Attributes:
        unknown: pixels labelled background that are of the unknown class: the ``salient`` ones (the official code on
            VOC), or all, ``background`` (the official code on ADE20K): then channel 0 is never a target.
        saliency_mass: where saliency is the network's own attention, the pixels that hold this share of a picture's are
            salient.
        pseudo_threshold: probability from which a prediction of the network before the round becomes a label.
        freeze_after_first: from the second round on adapter, decoder and the rows of old classes stay as they are;
            otherwise everything goes on learning.
        background_rate: how fast the background's row then learns, relative to the new ones.
    """

    unknown: UnknownRule = "salient"
    saliency_mass: float = 0.6
    pseudo_threshold: float = 0.7
    freeze_after_first: bool = True
    background_rate: float = 1e-4

    def rules(self) -> tuple[tuple[bool, str], ...]:
        """What must hold, and what to say otherwise."""
        return (
            *super().rules(),
            among("unknown", self.unknown, UnknownRule),
            (0 < self.saliency_mass <= 1, f"objective.saliency_mass must be in (0, 1], got {self.saliency_mass}"),
            (
                0 < self.pseudo_threshold <= 1,
                f"objective.pseudo_threshold must be in (0, 1], got {self.pseudo_threshold}",
            ),
            (
                isinstance(self.freeze_after_first, bool),
                f"objective.freeze_after_first must be true or false, got {self.freeze_after_first!r}",
            ),
            (
                0 <= self.background_rate <= 1,
                f"objective.background_rate must be in [0, 1], got {self.background_rate}",
            ),
        )


class UnknownLabel(Objective):
    """One yes or no a channel, and a channel for what stands out in the background without being any known class.

    Channels: 0 background, then the classes, last the unknown class. A pixel labelled background is unknown if it is
    salient; from the second round on it is of an old class instead where the network before the round says so: the best
    of all channels, with a probability of ``pseudo_threshold`` or more. The loss is the sum over channels of the binary
    cross entropy, its mean over pixels; ignored ones count only if ``ce_denominator`` says so. Rows of new classes, and
    their stem if the head has one a round, begin as copies of the unknown class's. A round with new classes that is not
    the first then trains, with ``freeze_after_first``, those, the unknown class's and, slowly, the background's; batch
    normalisation stands still.

    Departure from the official code: it reads saliency from maps of a detector trained elsewhere. A folder ``saliency``
    beside the pictures is used in their place if it is there; else the network's own attention is, which is coarse, and
    moves while the network learns. Not available: the memory of pictures of SSUL-M, weights chosen by a measure on test
    pictures. Learning rates are the method's, the same for all rows but the background's.

    Left open by the paper, which annotates no class twice: a class that the round annotates is no pseudo-label, since
    the pixel would have been labelled so; the row of a known class that is annotated again beside new ones stays. In a
    round without new classes nothing stands still, and all rows learn.
    """

    kinds = frozenset({"segmentation"})
    Config = SsulConfig
    summary = "binary cross entropy with an unknown class from saliency; later rounds train new classifiers alone"
    needs = frozenset({"teacher", "saliency"})
    head: ClassVar[Mapping[str, Any]] = {"background": "unknown"}

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if config.unknown == "background":
            self.needs -= {"saliency"}
        self._slow: list[nn.Parameter] = []
        self._new: tuple[int, ...] | None = None

    def stays(self, task: Task) -> bool:
        """A later round with new classes, unless ``freeze_after_first`` is off."""
        return bool(self.config.freeze_after_first and task.index > 0 and task.new)

    def initialise(self, head: Head, task: Task) -> None:
        """Start the new classes as the unknown one, and decide which parameters the round may move."""
        assert isinstance(head, DenseHead)
        assert head.unknown is not None
        if task.index > 0 and task.new:
            new = list(task.new)
            with torch.no_grad():
                head.classifier.weight[new] = head.unknown.weight
                head.classifier.get_parameter("bias")[new] = head.unknown.bias
            head.copy_stem(head.classes, new[0])
        self._slow, self._new = [], None
        if self.stays(task):
            self._stand(head, task)

    def _stand(self, head: DenseHead, task: Task) -> None:
        self._new = task.new
        head.rest()
        still: list[nn.Parameter] = []
        if head.stems is not None:
            learning = [_stem(head, channel).weight for channel in (0, task.new[0], head.classes)]
            self._slow = learning[:1]
            still += [each for each in head.stems.parameters() if not any(each is one for one in learning)]
        for parameter in still:
            parameter.requires_grad_(False)

    @contextmanager
    def stepping(self, head: Head, task: Task) -> Iterator[None]:
        """Undo what the step does to rows that stand still, and most of what it does to the background's."""
        if self._new is None:
            yield
            return
        rows = (head.classifier.weight, head.classifier.get_parameter("bias"))
        before = [parameter.detach().clone() for parameter in (*rows, *self._slow)]
        yield
        old = [channel for channel in range(1, head.classes) if channel not in self._new]
        rate = self.config.background_rate
        with torch.no_grad():
            for parameter, kept in zip(rows, before, strict=False):
                parameter[old] = kept[old]
                parameter[0] = kept[0] + rate * (parameter[0] - kept[0])
            for parameter, kept in zip(self._slow, before[len(rows) :], strict=True):
                parameter.copy_(kept + rate * (parameter - kept))

    def loss(self, outputs: Outputs, targets: Tensor, teacher: Outputs | None, task: Task) -> Tensor:
        """Binary cross entropy of all channels against the targets with unknown and pseudo-labelled pixels."""
        logits, valid = outputs.logits, targets != _IGNORE
        labels = self.relabelled(outputs, targets, teacher, task).where(valid, 0)
        # sum_c softplus(x_c) - x_y is the sum of the binary cross entropies against a one-hot target.
        terms = -F.logsigmoid(-logits).sum(1) - logits.gather(1, labels[:, None])[:, 0]
        return averaged(terms.where(valid, 0), targets, self.config)

    @torch.no_grad()
    def relabelled(self, outputs: Outputs, targets: Tensor, teacher: Outputs | None, task: Task) -> Tensor:
        """Targets int64 [B, H, W] in which background is unknown or of an old class where it should be."""
        labels = targets.long()
        background, unknown = labels == 0, outputs.logits.shape[1] - 1
        stands_out = background
        if self.config.unknown == "salient":
            if outputs.saliency is None:
                raise ValueError("objective ssul needs saliency")
            stands_out = background & salient_pixels(outputs.saliency, targets.shape[1:], self.config.saliency_mass)
        labels = torch.where(stands_out, unknown, labels)
        if teacher is None:
            return labels
        known = unannotated(teacher.logits[:, :-1], task)
        best, channel = known[:, 1:].max(1)
        others = torch.maximum(known[:, 0], teacher.logits[:, -1])
        certain = (best > others) & (best.sigmoid() >= self.config.pseudo_threshold)
        return torch.where(background & certain, channel + 1, labels)


def salient_pixels(saliency: Tensor, size: Sequence[int], mass: float) -> Tensor:
    """Which pixels stand out, bool [B, H, W].

    Args:
        saliency: [B, H, W], maps of the pictures: above 0. Of any other size [B, h, w] >= 0, attention: the most
            attended pixels that together hold the share ``mass`` of a picture's, once it is enlarged bilinearly (what
            is equally attended is equally salient).
        size: (H, W).
        mass: in (0, 1].

    >>> salient_pixels(torch.tensor([[[0.5, 0.3, 0.2]]]), (2, 3), 0.6).tolist()
    [[[True, True, False], [True, True, False]]]
    """
    if saliency.shape[1:] == tuple(size):
        return saliency > 0
    maps = at_size(saliency[:, None], size)[:, 0]
    ordered = maps.flatten(1).sort(1, descending=True).values
    held = ordered.cumsum(1)
    last = torch.searchsorted(held, mass * held[:, -1:]).clamp(max=held.shape[1] - 1)
    return (maps >= ordered.gather(1, last)[:, :, None]) & (maps > 0)


def _stem(head: DenseHead, channel: int) -> ConvNorm:
    stem = head.stem_of(channel)
    assert stem is not None
    return stem
