"""What a network calls pictures, and what it gets right: counts over classes and rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sapwood.data.store import PictureStore
from sapwood.feeds import extract, passes
from sapwood.heads.base import PooledHead
from sapwood.network import Network
from sapwood.progress import Progress

_BATCH = 64


@dataclass(frozen=True)
class Prediction:
    """What one picture is called.

    Attributes:
        path: as it was given.
        label: the class with the highest score.
        score: its probability over the known classes, in [0, 1].
        top: the best classes with their scores, best first.
    """

    path: str
    label: str
    score: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Evaluation:
    """Accuracy on labelled pictures.

    Attributes:
        version: id of the version that predicted.
        images: number of pictures.
        accuracy: fraction of pictures called by their class.
        per_class: fraction by class, for classes that have pictures.
        per_task: fraction by round name, over the classes of the round that have pictures.
        confusion: counts [K][K], rows are the true class, columns the predicted one, in learning order.
        classes: names in learning order.
    """

    version: str
    images: int
    accuracy: float
    per_class: dict[str, float]
    per_task: dict[str, float]
    confusion: list[list[int]]
    classes: list[str]

    def as_json(self) -> dict[str, Any]:
        """What ``sapwood evaluate --json`` prints."""
        return {
            "version": self.version,
            "images": self.images,
            "accuracy": self.accuracy,
            "per_class": self.per_class,
            "per_task": self.per_task,
            "confusion": self.confusion,
            "classes": self.classes,
        }


def confusion_counts(targets: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Counts [K, K]: rows true, columns predicted.

    >>> confusion_counts(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    return torch.bincount(targets * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def evaluate_counts(
    confusion: Tensor, classes: Sequence[str], tasks: Sequence[Mapping[str, Any]], version: str
) -> Evaluation:
    """Fractions from counts; classes and rounds without pictures are left out."""
    right, total = confusion.diagonal(), confusion.sum(1)
    names = list(classes)
    per_class = {
        name: right[index].item() / total[index].item() for index, name in enumerate(names) if total[index].item()
    }
    per_task = {}
    for task, cell in zip(tasks, task_cells(confusion, names, tasks), strict=True):
        if cell is not None:
            per_task[task["name"]] = cell
    images = int(total.sum())
    accuracy = right.sum().item() / images if images else 0.0
    return Evaluation(version, images, accuracy, per_class, per_task, confusion.tolist(), names)


def task_cells(confusion: Tensor, classes: Sequence[str], tasks: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """Accuracy on each round's classes, from counts; None where a round has no pictures here."""
    index = {name: position for position, name in enumerate(classes)}
    cells: list[float | None] = []
    for task in tasks:
        rows = [index[name] for name in task["annotated"] if name in index]
        total = int(confusion[rows].sum())
        cells.append(confusion.diagonal()[rows].sum().item() / total if total else None)
    return cells


def predict_logits(
    network: Network,
    store: PictureStore,
    image_size: int,
    progress: Progress,
    check: Callable[[], None] = lambda: None,
) -> Tensor:
    """Prediction logits [n, K] of the plain views, on the CPU; ``check`` may raise between batches."""
    options: dict[str, Any] = {"image_size": image_size, "batch_size": _BATCH, "what": "predicting", "check": check}
    if network.memory is not None and not network.adapter.moves:
        features = extract(network, store, progress=progress, **options)
        head = network.head
        assert isinstance(head, PooledHead)
        with torch.no_grad():
            return head.logits(features.to(network.device)).cpu()
    return passes(network, store, [network.predict], progress=progress, **options)[0]


def name_pictures(
    network: Network, store: PictureStore, classes: Sequence[str], image_size: int, top: int, progress: Progress
) -> list[Prediction]:
    """The best classes of each picture, with softmax scores at the head's temperature."""
    logits = predict_logits(network, store, image_size, progress)
    best, order = (logits / network.head.temperature).softmax(1).topk(min(max(1, top), len(classes)))
    named = [
        tuple((classes[index], value) for index, value in zip(which, values, strict=True))
        for which, values in zip(order.tolist(), best.tolist(), strict=True)
    ]
    return [Prediction(picture.name, *row[0], row) for picture, row in zip(store.pictures, named, strict=True)]


def count_confusion(
    network: Network,
    store: PictureStore,
    classes: Sequence[str],
    image_size: int,
    progress: Progress,
    check: Callable[[], None] = lambda: None,
) -> Tensor:
    """Counts [K, K] of true against predicted classes over labelled pictures."""
    position = {name: index for index, name in enumerate(classes)}
    targets = torch.tensor([position[str(label)] for label in store.pictures.labels])
    predicted = predict_logits(network, store, image_size, progress, check).argmax(1)
    return confusion_counts(targets, predicted, len(classes))
