"""What a head is: tokens in, one logit a class out; it grows and never forgets its rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sapwood.backbones.base import Tokens
from sapwood.data.rows import blocks
from sapwood.errors import SapwoodError
from sapwood.functional.openset import Gaussians, Sums, shared_gaussians
from sapwood.heads.calibration import Chosen, chosen_beside
from sapwood.heads.classifiers import Classifier, LinearClassifier, put_parameter
from sapwood.heads.openset import Once, OpenSet
from sapwood.heads.tensors import ENOUGH_HELD, Features, in_full_precision, needed
from sapwood.task import Task


class Head(nn.Module, ABC):
    """Maps ``Tokens`` to logits of all classes seen so far; grows, and never forgets its rows.

    Every head owns a ``classifier`` whose rows are trained by gradients. Gradient heads predict with it; statistics
    heads predict from sums over features, and use it only to train the adapter and to serve the teacher.

    Class attributes state facts: ``kind`` of task; ``fitted``, how predictions come about; ``Config``, the settings;
    ``summary`` and ``growth``, one line each for listings.

    Attributes:
        config: the settings.
        dim: width d of the features.
        temperature: a score is softmax(logits / temperature).
    """

    kind: ClassVar[str] = "classification"
    name: ClassVar[str]
    fitted: ClassVar[Literal["gradient", "statistics"]] = "gradient"
    Config: ClassVar[type]
    summary: ClassVar[str]
    growth: ClassVar[str]

    def __init__(self, config: Any, dim: int) -> None:
        super().__init__()
        self.config = config
        self.dim = dim
        self.temperature = 1.0
        self.classifier = self.make_classifier()

    def make_classifier(self) -> Classifier:
        """The classifier trained by gradients, without rows."""
        return LinearClassifier(self.dim)

    @property
    def classes(self) -> int:
        """Number of classes K."""
        return self.classifier.classes

    def grow(self, count: int, generator: torch.Generator) -> None:
        """Append rows for ``count`` new classes; the old rows keep their values bit for bit."""
        if count < 0:
            raise ValueError(f"a head grows by 0 or more classes, got {count}")
        if count:
            self.classifier.grow(count, generator)
            self.grow_statistics(count)

    @abstractmethod
    def forward(self, tokens: Tokens) -> Tensor:
        """Prediction logits float32, [B, K] or a map [B, K, h, w], not divided by the temperature."""

    def training_logits(self, tokens: Tokens) -> Tensor:
        """Logits that gradient training minimises a loss of; those of ``forward`` unless a head says otherwise."""
        return self(tokens)

    @property
    def decides(self) -> bool:
        """Whether ``decision`` changes logits."""
        return False

    def decision(self, logits: Tensor) -> Tensor:
        """What to take the best channel of: [B, K, h, w] from prediction logits [B, C, h, w] at any size.

        Channel k follows from logits of k, of channel 0 and of those behind the last class, at the same place.
        """
        return logits

    def before_task(self, task: Task) -> None:
        """Prepare for a round, once the rows of its classes are there."""

    def after_task(self, task: Task) -> None:
        """Finish a round, once its training is over."""

    @contextmanager
    def training_mode(self, wanted: bool) -> Iterator[None]:
        """Training or evaluation mode inside; afterwards the mode of before. Heads are made in evaluation mode."""
        before = self.training
        self.train(wanted)
        try:
            yield
        finally:
            self.train(before)

    def running(self) -> dict[str, Tensor]:
        """Tensors that training forwards change in place; stored, and part of checkpoints."""
        return {}

    @property
    def wants_features(self) -> bool:
        """Whether the head is fitted on the pooled features of a round's pictures after training."""
        return False

    @property
    def drift(self) -> Literal["none", "linear"]:
        """Whether kept statistics are to be carried along when an adapter moves the features."""
        return "linear" if self.wants_features and getattr(self.config, "drift", "none") == "linear" else "none"

    def grow_statistics(self, count: int) -> None:
        """Make room for ``count`` new classes in the kept statistics."""

    def kept_statistics(self) -> dict[str, Tensor]:
        """What is kept from the features of earlier rounds, in the dtype and shape in which it is stored."""
        return {}

    def solved_tensors(self) -> dict[str, Tensor]:
        """What predictions use beside the trained parameters and is stored so that it need not be solved again."""
        return {}

    def load_statistics(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Restore ``kept_statistics`` and ``solved_tensors``."""

    def meta(self) -> dict[str, Any]:
        """Facts stored beside the tensors, as JSON."""
        return {"classes": self.classes, "temperature": self.temperature}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors on the CPU, JSON facts) from which ``load`` restores the head with any number of classes."""
        tensors = {name: value.float() for name, value in self.named_parameters()}
        tensors |= self.running() | self.solved_tensors() | self.kept_statistics()
        return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, self.meta()

    def load(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Restore what ``state`` gave. Parameters of unchanged shape keep their identity (and their optimiser)."""
        rows = self.make_room(meta)
        for name, old in list(self.named_parameters()):
            module, _, own = name.rpartition(".")
            put_parameter(self.get_submodule(module), own, needed(tensors, name, rows.get(name, tuple(old.shape))))
        for name, running in self.running().items():
            running.copy_(needed(tensors, name, tuple(running.shape)))
        self.temperature = float(meta["temperature"])
        self.load_statistics(tensors, meta)

    def make_room(self, meta: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Build what the stored facts say has grown; shapes by name of the parameters that are to be replaced."""
        return {
            "classifier.weight": (meta["classes"], self.classifier.weight.shape[1]),
            "classifier.bias": (meta["classes"],),
        }

    def declared_bytes(self) -> int:
        """Bytes of the trained tensors and kept statistics, as ``state`` stores them."""
        return sum(value.numel() * value.element_size() for value in self.state()[0].values())


class PooledHead(Head):
    """A head that names a picture by its pooled features.

    ``calibrates`` says whether ``fit`` sets the temperature itself, on pictures before they join the sums.

    Attributes:
        calibrated: the last round gave the temperature, on pictures that were held out.
        balanced: rare classes count as much as common ones in what ``fit`` and ``settle`` make of pictures.
        known: what tells pictures of known classes from others.
    """

    calibrates: ClassVar[bool] = False

    def __init__(self, config: Any, dim: int) -> None:
        super().__init__(config, dim)
        self.calibrated, self.told = False, 0
        self.balanced = False
        self.known = OpenSet(dim, own=not self.keeps_sums)
        self._gaussians: Once[Gaussians | None] = Once()

    @property
    def keeps_sums(self) -> bool:
        """Whether ``sums`` are those from which the head predicts."""
        return False

    @property
    def sums(self) -> Sums:
        """Sums over the features of all rounds."""
        return self.known.sums

    def grow(self, count: int, generator: torch.Generator) -> None:
        """Append rows for ``count`` new classes; the old rows keep their values bit for bit."""
        super().grow(count, generator)
        self.known.grow(count)

    def learn_known(self, train: Features, validation: Features | None, *, stays: bool) -> dict[str, Any]:
        """Learn what pictures of a round look like, once ``fit`` is over: facts for the log.

        Args:
            train, validation: as for ``fit``.
            stays: the round left the features as they were.
        """
        held = 0 if validation is None else len(validation.y)
        x, y = self.checked(train if validation is None else train.joined(validation))
        x, y = x.cpu() if isinstance(x, Tensor) else x, y.cpu()
        self.known.observe(x, y)
        if self.known.complete:
            self.known.hold_out(self.sums, x, y, held, stays=stays)
        return {"known_limit": self.known.limit}

    def known_gaussians(self) -> tuple[Gaussians, float] | None:
        """The known classes in feature space, and the distance up to which a picture is one of theirs.

        None while it cannot be said: too few pictures have been held out.
        """
        if (limit := self.known.limit) is None:
            return None
        gaussians = self._gaussians.of(self.summed(), lambda: shared_gaussians(self.sums))
        return None if gaussians is None else (gaussians, limit)

    def summed(self) -> tuple[Tensor, ...]:
        """The tensors that ``sums`` are made of."""
        return self.known.total, self.known.count, self.known.packed_gram

    def meta(self) -> dict[str, Any]:
        """Facts stored beside the tensors, as JSON."""
        said = {"calibrated": self.calibrated, "told": self.told, "balanced": self.balanced}
        return super().meta() | said | {"known": self.known.meta()}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors on the CPU, JSON facts) from which ``load`` restores the head with any number of classes."""
        tensors, meta = super().state()
        return tensors | {name: value.clone() for name, value in self.known.tensors().items()}, meta

    def load(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Restore what ``state`` gave, also that of a release without ``known`` or ``balanced``."""
        self.balanced = bool(meta.get("balanced", False))
        super().load(tensors, meta)
        self.calibrated = bool(meta.get("calibrated", self.temperature != 1.0))
        self.told = int(meta.get("told", ENOUGH_HELD if self.temperature != 1.0 else 0))
        self.known.load(tensors, meta.get("known"), self.classes)

    def forward(self, tokens: Tokens) -> Tensor:
        """Prediction logits [B, K] float32, not divided by the temperature."""
        return in_full_precision(self.logits, tokens.pooled)

    def training_logits(self, tokens: Tokens) -> Tensor:
        """Logits [B, K] float32 of the classifier."""
        return in_full_precision(self.classifier, tokens.pooled)

    @abstractmethod
    def logits(self, x: Tensor) -> Tensor:
        """Prediction logits [n, K] of features [n, d] float32."""

    def carry(self, P: Tensor) -> None:
        """Map all kept statistics of earlier rounds by P [d, d]; see ``functional.statistics.drift_map``."""

    @abstractmethod
    def fit(self, train: Features, validation: Features | None, generator: torch.Generator) -> dict[str, Any]:
        """Learn from a round's features, once its gradient training is over.

        Args:
            train: features of the round's training pictures.
            validation: those of its validation pictures, which may choose settings and then join; None or empty.
            generator: on the CPU.

        Returns:
            Facts for the log.
        """

    def calibrate_temperature(self, logits: Tensor, targets: Tensor) -> None:
        """Choose the temperature on held-out pictures; few move it little, none not at all.

        Nor do those of one class where rows are trained: these favour the newest class, on pictures of others too.
        """
        fewest = 1 if self.fitted == "statistics" else 2
        if (found := chosen_beside(Chosen(self.temperature, self.told), logits, targets, fewest)) is not None:
            (self.temperature, self.told), self.calibrated = found, True

    def checked(self, features: Features) -> Features:
        """The features, once their shapes, classes and numbers have been looked at."""
        x, y = features
        if len(x.shape) != 2 or x.shape[1] != self.dim or y.shape != x.shape[:1]:
            raise ValueError(f"features must be x [n, {self.dim}] and y [n], got {tuple(x.shape)} and {tuple(y.shape)}")
        if len(y) and not 0 <= int(y.min()) <= int(y.max()) < self.classes:
            raise ValueError(f"classes must lie in 0..{self.classes - 1}, got {int(y.min())}..{int(y.max())}")
        bad = sum(int((~torch.isfinite(rows)).any(1).sum()) for rows in blocks(x))
        if bad:
            raise SapwoodError(f"{bad} of {len(x)} features are not finite: the training diverged; lower --lr")
        return Features(x.detach().float() if isinstance(x, Tensor) else x, y.detach().to(x.device, torch.int64))
