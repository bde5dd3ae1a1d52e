"""What differs between naming pictures and drawing masks, in one place; nothing else asks which it is."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sapwood.backbones.base import Backbone, BackboneInfo
from sapwood.data.kept import Share
from sapwood.data.pictures import Pictures
from sapwood.errors import DataError
from sapwood.feeds import Feed
from sapwood.network import Network
from sapwood.probes import Probe, Shown
from sapwood.progress import Progress
from sapwood.settings import TrainingConfig
from sapwood.task import Task

Size = int | Sequence[int]
"""Pixels of a view: a side, or (height, width)."""


@dataclass(frozen=True)
class Round(ABC):
    """The pictures of a round, decoded, and split.

    Attributes:
        task: index, name, classes and seed.
        names: all class names after the round, in learning order.
        train, held: stores of training and validation pictures.
        size: of the views.
    """

    task: Task
    names: tuple[str, ...]
    train: Any
    held: Any
    size: Size

    def __len__(self) -> int:
        """Pictures of the round, those held out included."""
        return len(self.train) + len(self.held)

    @abstractmethod
    def manifest(self) -> list[dict[str, Any]]:
        """What is remembered of each picture: its hash, split and class; neither pixels nor paths."""

    def digest(self) -> str:
        """sha256 over what decides the batches: two rounds with the same digest see the same ones."""
        return digest_of(self.manifest())

    @abstractmethod
    def feed(self, config: TrainingConfig, *, stays: bool) -> Feed:
        """Training views; ``stays`` as in ``ViewFeed``."""

    @abstractmethod
    def plain_feed(self, config: TrainingConfig, *, held: bool, stays: bool = False) -> Feed:
        """Plain views of the validation pictures, or of those to train on; ``stays`` as in ``ViewFeed``."""

    @abstractmethod
    def validate(self, network: Network, feed: Feed) -> float | None:
        """What the training logits get right of a feed of validation pictures, among the round's own classes.

        None where these pictures show none of the classes.
        """

    def remarks(self) -> list[str]:
        """What a person should know of these pictures before training starts."""
        return []


class Kind(ABC):
    """One kind of task: what its data are, and how predictions are counted.

    Attributes:
        name: stored in the state.
        default_method: of ``learn``, where no method is named and ``default_for`` says nothing else.
        measure: what the cells of the matrix are, for people.
        knows_unknown: it says of a picture whether it is like any that was learned.
    """

    name: ClassVar[str]
    default_method: ClassVar[str]
    measure: ClassVar[str]
    knows_unknown: ClassVar[bool] = False

    def default_for(self, backbone: Backbone) -> str:
        """The default method, or what takes its place where the backbone does not go with it."""
        return self.default_method

    @abstractmethod
    def read(self, data: Any, **options: Any) -> Pictures:
        """Pictures to learn from."""

    def data_remarks(self, data: Any) -> list[str]:
        """What a person should know of the data that are given, whatever the pictures show."""
        return []

    @abstractmethod
    def read_tests(self, data: Any) -> Pictures:
        """Pictures to measure on: the test part where the data come in parts, else all."""

    @abstractmethod
    def store(
        self,
        pictures: Pictures,
        size: Size,
        *,
        skip_bad: bool,
        workers: int,
        progress: Callable[[int, int], None],
        least: int = 1,
        share: Share | None = None,
    ) -> Any:
        """The pictures decoded at working size; raises DataError where they cannot be read.

        Of pictures with masks the sides must be ``least`` pixels, a patch: nothing can be drawn into smaller ones.
        ``share`` is for processes that learn together: all of them call this alike.
        """

    def load(
        self,
        pictures: Pictures,
        size: Size,
        progress: Progress,
        *,
        skip_bad: bool,
        workers: int = 0,
        least: int = 1,
        share: Share | None = None,
    ) -> Any:
        """The same with progress, and a note on each picture that was skipped, and on those that are not kept."""
        if not len(pictures):
            raise DataError("no pictures were given")
        progress.start("reading pictures", len(pictures))
        store = self.store(
            pictures,
            size,
            skip_bad=skip_bad,
            workers=workers,
            progress=lambda done, total: progress.advance(1),
            least=least,
            share=share,
        )
        progress.finish()
        if store.anew:
            progress.note(
                f"{store.anew} of {len(store)} pictures are decoded anew at every look: beyond {store.limit / 1e9:.1f} "
                "GB of pixels (half of what was free in the temporary folder, at most 64 GiB) nothing is kept; set "
                "TMPDIR to a larger disk, and --workers to the processors at hand"
            )
        for bad, reason in store.bad:
            progress.note(f"skipped {bad}: {reason}")
        return store

    @abstractmethod
    def prepare(
        self,
        store: Any,
        known: Sequence[str],
        index: int,
        name: str,
        seed: int,
        validation: float,
        size: Size,
        cell: int = 1,
    ) -> Round:
        """Split the pictures, and number the classes: known ones keep their index, new ones follow.

        Args:
            store: what ``store`` gave.
            known: names of the classes so far.
            index, name, seed: of the round.
            validation: share of the pictures that is held out.
            size: of views.
            cell: pixels a patch is wide.

        Raises:
            DataError: there is nothing to learn here, or a name is not allowed.
        """

    @abstractmethod
    def check_tests(
        self, tests: Any, names: Sequence[str], former: Mapping[str, str] | None = None, options: Any = None
    ) -> list[str]:
        """Remarks on pictures to measure on.

        Args:
            tests: the pictures.
            names: of the classes that are known.
            former: today's names of former ones.
            options: ``MaskOptions``, for masks.

        Raises:
            DataError: their classes cannot be measured.
        """

    @abstractmethod
    def confusion(
        self,
        network: Network,
        tests: Any,
        names: Sequence[str],
        size: Size,
        progress: Progress,
        check: Callable[[], None] = lambda: None,
        options: Any = None,
    ) -> Tensor:
        """Counts [K, K] of truth (rows) against prediction."""

    def outcomes(
        self,
        network: Network,
        tests: Any,
        names: Sequence[str],
        size: Size,
        progress: Progress,
        options: Any = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """What ``confusion`` counts, and the fields of an evaluation that do not follow from counts."""
        return self.confusion(network, tests, names, size, progress, options=options), {}

    def accepted(self, network: Network, pictures: Any, size: Size, progress: Progress) -> float | None:
        """Fraction of pictures that are taken for known ones; None where that cannot be said."""
        return None

    @abstractmethod
    def shown(self, store: Any) -> list[Shown]:
        """What each picture of a store is known by, whatever is said of it, and the classes that it shows."""

    @abstractmethod
    def probes(self, store: Any, round_: Round) -> list[Probe]:
        """Pictures that came with a round and are not learned, as the state keeps them to measure on."""

    @abstractmethod
    def probe_pictures(self, probes: Sequence[Probe]) -> Pictures:
        """The same to measure on."""

    @abstractmethod
    def cells(self, confusion: Tensor, names: Sequence[str], tasks: Sequence[Mapping[str, Any]]) -> list[float | None]:
        """One fraction a round, over its classes; None where they were not among the tests."""

    @abstractmethod
    def measured_on(self, tests: Any, tasks: Sequence[Mapping[str, Any]], options: Any = None) -> list[str]:
        """One name a round for what its cell is measured on; cells of the same name may be compared.

        It is made of the pictures, of what they are said to show, and of the options that decide what is counted; a
        class is known by its place in the round, so that another name for it changes nothing.
        """

    @abstractmethod
    def summary(self, confusion: Tensor, names: Sequence[str], tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The headline fractions, as the state keeps them for a round; None where nothing was measured."""

    @abstractmethod
    def evaluation(
        self, confusion: Tensor, images: int, record: Mapping[str, Any], version: str, options: Any = None
    ) -> Any:
        """Fractions from counts."""

    @abstractmethod
    def predict(
        self,
        network: Network,
        pictures: Pictures,
        record: Mapping[str, Any],
        *,
        skip_bad: bool,
        progress: Progress,
        **options: Any,
    ) -> Iterator[Any]:
        """One prediction a picture, in order; no answer depends on another picture."""

    @abstractmethod
    def view_size(self, wanted: Size | None, info: BackboneInfo) -> Size:
        """The size of views that a new state records; None asks for the default."""


def digest_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """sha256 over rows of a manifest."""
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def name_of(things: Iterable[str]) -> str:
    """A short name for a set of digests, whatever their order.

    >>> name_of(["b2", "a1"]) == name_of(["a1", "b2"]) != name_of(["a1"])
    True
    """
    return hashlib.sha256(" ".join(sorted(things)).encode()).hexdigest()[:16]
