"""DKD: decomposed knowledge distillation (Baek et al., NeurIPS 2022, arXiv 2210.05941; settings of its code)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sapwood.functional.segmentation import decomposed_distillation, sigmoid_distillation
from sapwood.objectives.base import Objective, Outputs
from sapwood.objectives.pixels import among, at_least_zero
from sapwood.settings import check
from sapwood.task import Task
from sapwood.world.sums import divisor

if TYPE_CHECKING:
    from sapwood.heads.base import Head

VoidTrain = Literal["ignore", "negative"]
NewRows = Literal["auxiliary", "prior"]
_IGNORE = 255
_PRIOR = 0.1


@dataclass(frozen=True)
class DkdConfig:
    """Weights of the terms, and what ignored pixels are; the weights are those of VOC.

    Attributes:
        strength: weight of the distillation of the old classes' probabilities.
        positive: weight of the distillation of their positive parts.
        negative: weight of that of their negative parts.
        auxiliary: weight of the auxiliary classifier's loss.
        first_positive_weight: what a pixel of a class counts in the loss of this class, against 1 for all others, in
            the first round (the official code has 35 on ADE20K).
        positive_weight: the same in later rounds.
        void_train: an ignored pixel does not count (``ignore``), or is one without any class (``negative``, the
            official code). The other terms do not look at labels and run over all pixels.
        head_init: where the rows of new classes begin: as the ``auxiliary`` classifier, which says no ever more surely
            the longer it learns, or at a ``prior`` of one in ten everywhere, which few steps get away from.
    """

    strength: float = 5.0
    positive: float = 5.0
    negative: float = 5.0
    auxiliary: float = 1.0
    first_positive_weight: float = 2.0
    positive_weight: float = 1.0
    void_train: VoidTrain = "ignore"
    head_init: NewRows = "auxiliary"

    def __post_init__(self) -> None:
        numbers = ("strength", "positive", "negative", "auxiliary", "first_positive_weight", "positive_weight")
        check(
            *(at_least_zero(name, getattr(self, name)) for name in numbers),
            among("void_train", self.void_train, VoidTrain),
            among("head_init", self.head_init, NewRows),
        )


class DecomposedDistillation(Objective):
    """One yes or no a class: a pixel is of no class unless one is more likely than not.

    The background is no class. Its row in the head is the auxiliary classifier, which learns to say no everywhere from
    features that it does not change, and which the rows of new classes begin as (``head_init``). With C_t the classes
    that the round annotates and C_old those of the network before it, each term a mean over pixels, summed over
    classes:

    BCE(x_c, [y = c]) for c in C_t + ``strength`` * BCE(x_c, sigmoid(teacher_c)) + ``positive`` * BCE(z+_c,
    sigmoid(teacher's z+_c)) + ``negative`` * the same of z-, for c in C_old + ``auxiliary`` * softplus(x_0),

    where z+ and z- are the classifier's input times the positive and the negative weights of a class, before they are
    enlarged and without bias (eq. 7-9). They are parts of a score only where all classifiers read the decoder's output.

    Departure from the official code, available by the option named: ignored pixels do not count (``void_train``). Not
    available: the reference does not say whether the positive weight of ADE20K, 35, changes after its first round;
    batch normalisation of a decoder goes on as the head has it, where the code freezes it after the first round;
    learning rates and weight decay are the method's, the same for all rows. A known class that a round annotates again
    learns from both its labels and the teacher. In a round without new classes nothing is initialised.
    """

    kinds = frozenset({"segmentation"})
    Config = DkdConfig
    summary = "binary cross entropy of each class + distillation of the scores and of their two parts"
    needs = frozenset({"teacher", "parts"})
    head: ClassVar[Mapping[str, Any]] = {"background": "auxiliary", "stem": "shared"}

    def initialise(self, head: Head, task: Task) -> None:
        """Start the rows of the round's new classes where ``head_init`` says; nothing in the first round."""
        if task.index == 0 or not task.new:
            return
        new, weight, bias = list(task.new), head.classifier.weight, head.classifier.get_parameter("bias")
        with torch.no_grad():
            if self.config.head_init == "prior":
                weight[new], bias[new] = 0.0, math.log(_PRIOR / (1 - _PRIOR))
            else:
                weight[new], bias[new] = weight[0].clone(), bias[0].clone()

    def loss(self, outputs: Outputs, targets: Tensor, teacher: Outputs | None, task: Task) -> Tensor:
        """The sum above; without a teacher its first and last term."""
        config, logits = self.config, outputs.logits
        weight = config.first_positive_weight if teacher is None else config.positive_weight
        loss = self._labelled(logits, targets, sorted({*task.annotated, *task.new}), weight)
        loss = loss - config.auxiliary * F.logsigmoid(-logits[:, 0]).mean()
        if teacher is None:
            return loss
        assert outputs.parts is not None
        assert teacher.parts is not None
        positive, negative = decomposed_distillation(outputs.parts, teacher.parts)
        distilled = sigmoid_distillation(logits, teacher.logits)
        return loss + config.strength * distilled + config.positive * positive + config.negative * negative

    def _labelled(self, logits: Tensor, targets: Tensor, channels: Sequence[int], weight: float) -> Tensor:
        wanted = torch.tensor(channels, device=logits.device)
        hits = (targets[:, None] == wanted.reshape(-1, 1, 1)).to(logits.dtype)
        scale = torch.tensor(weight, dtype=logits.dtype, device=logits.device)
        terms = F.binary_cross_entropy_with_logits(logits[:, wanted], hits, pos_weight=scale, reduction="none").sum(1)
        if self.config.void_train == "negative":
            return terms.mean()
        valid = targets != _IGNORE
        return terms.where(valid, 0).sum() / divisor(valid.sum())
