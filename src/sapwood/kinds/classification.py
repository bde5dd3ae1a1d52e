"""Naming pictures: one class each."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sapwood.backbones.base import Backbone, BackboneInfo
from sapwood.backbones.split import Split
from sapwood.data.folder_remarks import folder_remarks
from sapwood.data.given import read_test_data
from sapwood.data.kept import Share
from sapwood.data.loader import Views
from sapwood.data.names import check_class_names
from sapwood.data.pictures import Picture, Pictures
from sapwood.data.sources import read_data
from sapwood.data.splits import validation_split
from sapwood.data.store import PictureStore
from sapwood.errors import ConfigError, DataError
from sapwood.evaluation import (
    Evaluation,
    Prediction,
    accepted_share,
    count_confusion,
    count_outcomes,
    evaluate_counts,
    name_pictures,
    task_cells,
)
from sapwood.feeds import Feed, PictureFeed, owned
from sapwood.functional.confusion import row_sums
from sapwood.kinds.base import Kind, Round, Size, name_of
from sapwood.network import Network
from sapwood.probes import Probe, Shown, as_png
from sapwood.progress import Progress
from sapwood.record import task_names
from sapwood.settings import TrainingConfig
from sapwood.task import Task
from sapwood.world.sums import summed

_WIDEST = 1600
"""Numbers a picture whose sums (10 MB) and features (8 MB) are less than 20 MB a round."""
HEADROOM = 1.25
"""Of decoded pictures over views, so that a crop is not enlarged much."""


@dataclass(frozen=True)
class PictureRound(Round):
    """A round of pictures with one class each.

    Attributes:
        train_targets, held_targets: their class indices.
    """

    size: int
    train_targets: Tensor
    held_targets: Tensor

    def manifest(self) -> list[dict[str, Any]]:
        """Hash, class index and split of each picture."""
        return [
            {"sha256": sha256, "label": int(label), "split": split}
            for split, store, targets in (
                ("train", self.train, self.train_targets),
                ("validation", self.held, self.held_targets),
            )
            for sha256, label in zip(store.sha256, targets, strict=True)
        ]

    def feed(self, config: TrainingConfig, *, stays: bool) -> Feed:
        """Training views."""
        views = Views(self.size, augment=config.augment, seed=self.task.seed, task=self.task.index)
        options: dict[str, bool] = {"stays": stays, "balanced": config.balance == "auto"}
        return PictureFeed(self.train, self.train_targets, views, config.batch_size, config.workers, **options)

    def plain_feed(self, config: TrainingConfig, *, held: bool, stays: bool = False) -> Feed:
        """Plain views of the validation pictures, or of those to train on; ``stays`` as in ``ViewFeed``."""
        store, targets = (self.held, self.held_targets) if held else (self.train, self.train_targets)
        views = Views(self.size, augment=False, seed=self.task.seed, task=self.task.index)
        return PictureFeed(store, targets, views, config.batch_size, config.workers, stays=stays)

    @torch.no_grad()
    def validate(self, network: Network, feed: Feed) -> float:
        """Accuracy of the training logits among the round's own classes."""
        own = torch.tensor(self.task.annotated)
        right = torch.zeros((), dtype=torch.int64)
        for batch in owned(feed):
            logits = feed.forward(network, None, batch)[0].logits
            right += (own[logits[:, own].argmax(1).cpu()] == batch.targets).sum()
        return int(summed(right)) / len(self.held)

    def remarks(self) -> list[str]:
        """Too few classes or pictures."""
        found = []
        if len(self.names) < 2:
            found.append("only one class is known so far; every picture will be called by it until there is a second")
        counts = Counter(self.train.pictures.labels + self.held.pictures.labels)
        fresh = {self.names[index] for index in self.task.new}
        single = (label for label, count in counts.items() if count == 1 and label in fresh)
        return found + [f"class {label!r} has a single picture; more would help" for label in single]


class Classification(Kind):
    """Pictures in, class names out."""

    name = "classification"
    default_method = "ridge-4"
    measure = "accuracy"
    knows_unknown = True

    def default_for(self, backbone: Backbone) -> str:
        """Where no blocks' class tokens can be read, or their sums would be large: the backbone's own feature."""
        fits = isinstance(backbone, Split) and 4 * backbone.info.dim <= _WIDEST
        return self.default_method if fits else "ridge"

    def read(self, data: Any, **options: Any) -> Pictures:
        """Pictures to learn from."""
        return read_data(data)

    def data_remarks(self, data: Any) -> list[str]:
        """Folders where other ones may be meant."""
        return folder_remarks(data)

    def read_tests(self, data: Any) -> Pictures:
        """Pictures to measure on."""
        return read_test_data(data)

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
    ) -> PictureStore:
        """The pictures decoded at a quarter above the size of views."""
        shorter = round(_side(size) * HEADROOM)
        return PictureStore(pictures, shorter, skip_bad=skip_bad, workers=workers, progress=progress, share=share)

    def prepare(
        self,
        store: PictureStore,
        known: Sequence[str],
        index: int,
        name: str,
        seed: int,
        validation: float,
        size: Size,
        cell: int = 1,
    ) -> PictureRound:
        """Split the pictures by class; classes are numbered in the data's order."""
        labels = [label for label in store.pictures.labels if label is not None]
        if len(labels) < len(store):
            raise DataError("some pictures have no class; learning needs one for each")
        check_class_names(store.pictures.classes, "the new pictures", known)
        names = tuple(dict.fromkeys((*known, *store.pictures.classes)))
        position = {label: number for number, label in enumerate(names)}
        targets = torch.tensor([position[label] for label in labels])
        train, held = validation_split(labels, validation, seed)
        task = Task(
            index,
            name,
            tuple(range(len(known), len(names))),
            tuple(sorted({position[label] for label in labels})),
            len(names),
            seed,
        )
        return PictureRound(
            task, names, store.subset(train), store.subset(held), _side(size), targets[train], targets[held]
        )

    def check_tests(
        self, tests: PictureStore, names: Sequence[str], former: Mapping[str, str] | None = None, options: Any = None
    ) -> list[str]:
        """Every class must be known."""
        check_known(tests.pictures.classes, names, former or {})
        return []

    def confusion(
        self,
        network: Network,
        tests: PictureStore,
        names: Sequence[str],
        size: Size,
        progress: Progress,
        check: Callable[[], None] = lambda: None,
        options: Any = None,
    ) -> Tensor:
        """Pictures [K, K], true class against predicted class."""
        return count_confusion(network, tests, names, _side(size), progress, check)

    def outcomes(
        self,
        network: Network,
        tests: PictureStore,
        names: Sequence[str],
        size: Size,
        progress: Progress,
        options: Any = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Pictures [K, K], true class against predicted class; calibration, and the pictures most surely wrong."""
        return count_outcomes(network, tests, names, _side(size), progress)

    def accepted(self, network: Network, pictures: PictureStore, size: Size, progress: Progress) -> float | None:
        """Fraction of pictures that are taken for known ones."""
        return accepted_share(network, pictures, _side(size), progress)

    def shown(self, store: PictureStore) -> list[Shown]:
        """The class of each picture."""
        labels = store.pictures.labels
        return [Shown(sha256, () if n is None else (n,)) for sha256, n in zip(store.sha256, labels, strict=True)]

    def probes(self, store: PictureStore, round_: Round) -> list[Probe]:
        """Pictures with their classes."""
        shown = self.shown(store)
        return [Probe(each.sha256, each.classes, as_png(store[index])) for index, each in enumerate(shown)]

    def probe_pictures(self, probes: Sequence[Probe]) -> Pictures:
        """Labelled pictures."""
        return Pictures(Picture(f"probe {index}", each.content, each.classes[0]) for index, each in enumerate(probes))

    def cells(self, confusion: Tensor, names: Sequence[str], tasks: Sequence[Mapping[str, Any]]) -> list[float | None]:
        """Accuracy on each round's classes."""
        return task_cells(confusion, names, tasks)

    def measured_on(self, tests: PictureStore, tasks: Sequence[Mapping[str, Any]], options: Any = None) -> list[str]:
        """Of each round the pictures of each of its classes; others may come and go."""
        shown = defaultdict(list)
        for sha256, label in zip(tests.sha256, tests.pictures.labels, strict=True):
            shown[label].append(sha256)
        places = [enumerate(task["annotated"]) for task in tasks]
        return [name_of(f"{place} {name_of(shown[name])}" for place, name in each) for each in places]

    def summary(self, confusion: Tensor, names: Sequence[str], tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Accuracy over all pictures, and of each class that is among them, with the number of its pictures."""
        totals = row_sums(confusion)
        total = int(totals.sum())
        counts = {name: count for name, count in zip(names, totals.tolist(), strict=True) if count}
        right = dict(zip(names, confusion.diagonal().tolist(), strict=True))
        return {
            "accuracy": int(confusion.diagonal().sum()) / total if total else None,
            "per_class": {name: right[name] / count for name, count in counts.items()},
            "counts": counts,
        }

    def evaluation(
        self, confusion: Tensor, images: int, record: Mapping[str, Any], version: str, options: Any = None
    ) -> Evaluation:
        """Accuracies from counts."""
        return evaluate_counts(confusion, task_names(record), record["tasks"], version)

    def predict(
        self,
        network: Network,
        pictures: Pictures,
        record: Mapping[str, Any],
        *,
        skip_bad: bool,
        progress: Progress,
        **options: Any,
    ) -> Iterator[Prediction]:
        """The best classes of each picture; option ``top`` says how many."""
        size = record["image_size"]
        store = self.load(pictures, size, progress, skip_bad=skip_bad)
        yield from name_pictures(network, store, task_names(record), size, options["top"], progress)

    def view_size(self, wanted: Size | None, info: BackboneInfo) -> Size:
        """A square, by default that of the backbone."""
        return _side(info.image_size if wanted is None else wanted)


def _side(size: Size) -> int:
    if isinstance(size, int):
        return size
    if len(set(size)) != 1:
        raise ConfigError(f"pictures are named from square views; got {'x'.join(map(str, size))}, give one number")
    return size[0]


def check_known(classes: Sequence[str], names: Sequence[str], former: Mapping[str, str]) -> None:
    """Refuse classes of test pictures that are not among ``names``; for ``former`` see ``Kind.check_tests``."""
    taught = frozenset(names)
    if unknown := [name for name in classes if name not in taught]:
        today = "".join(f" {name!r} is called {former[name]!r} today." for name in unknown[:5] if name in former)
        some = ", ".join(map(repr, unknown[:5]))
        raise DataError(
            f"unknown class {some} in the test pictures; known: {', '.join(names)}.{today} "
            "Learn it first, use today's name if it was renamed or merged, or leave its pictures out"
        )
