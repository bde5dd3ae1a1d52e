"""What a network calls pictures, and what it gets right: counts over classes and rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sapwood.adapters.base import Adapter
from sapwood.data.store import PictureStore
from sapwood.functional.calibration import expected_calibration_error
from sapwood.functional.confusion import confusion_counts, row_sums
from sapwood.functional.openset import nearest_distance
from sapwood.heads.base import PooledHead
from sapwood.network import Network
from sapwood.passing import recalled_features, run_pass
from sapwood.progress import Progress

_BATCH = 64
_LISTED = 20
"""Confusions, and pictures that are surely wrong."""


@dataclass(frozen=True)
class Prediction:
    """What one picture is called.

    Attributes:
        path: as it was given.
        label: the class with the highest score.
        score: its probability over the known classes, in [0, 1].
        top: the best classes with their scores, best first.
        known: whether it is like pictures of some class that was learned; None where that cannot be said.
        calibrated: whether held-out pictures have made the scores probabilities.
    """

    path: str
    label: str
    score: float
    top: tuple[tuple[str, float], ...]
    known: bool | None = None
    calibrated: bool = False


@dataclass(frozen=True)
class Evaluation:
    """Accuracy on labelled pictures.

    Attributes:
        version: id of the version that predicted.
        images: number of pictures.
        accuracy: fraction of pictures called by their class.
        balanced_accuracy: mean of ``per_class``.
        per_class: fraction by class, for classes that have pictures.
        per_task: fraction by round name, over the classes of the round that have pictures.
        counts: [K, K] int32, rows are the true class, columns the predicted one, in learning order;
            ``confusion`` is the same as lists. Two evaluations are compared without it.
        classes: names in learning order.
        top_confusions: what is taken for what, the most pictures first: ``true``, ``predicted``, ``count`` and
            ``share`` of the true class's pictures.
        ece: expected calibration error of the scores; None where they were not looked at.
        calibrated: whether held-out pictures have made the scores probabilities.
        accepted: fraction of pictures that are called known; None where that cannot be said.
        worst: the pictures most surely wrong, surest first: ``path``, ``true``, ``predicted``, ``score``.
        unknown_images: pictures of other classes that were measured too.
        false_accept: fraction of these that are called known all the same; None where that cannot be said.
        learned_images: how many different pictures among them were learned from, by their bytes; None where that cannot
            be said.
    """

    version: str
    images: int
    accuracy: float
    balanced_accuracy: float
    per_class: dict[str, float]
    per_task: dict[str, float]
    counts: Tensor = field(repr=False, compare=False)
    classes: list[str]
    top_confusions: list[dict[str, Any]]
    ece: float | None = None
    calibrated: bool | None = None
    accepted: float | None = None
    worst: list[dict[str, Any]] = field(default_factory=list)
    unknown_images: int = 0
    false_accept: float | None = None
    learned_images: int | None = 0

    def as_json(self) -> dict[str, Any]:
        """What ``sapwood evaluate --json`` prints."""
        named = {"confusion" if name == "counts" else name: value for name, value in self.__dict__.items()}
        return {**named, "confusion": self.confusion}

    @property
    def confusion(self) -> list[list[int]]:
        """``counts`` as lists."""
        found: list[list[int]] = self.counts.tolist()
        return found


def evaluate_counts(
    confusion: Tensor, classes: Sequence[str], tasks: Sequence[Mapping[str, Any]], version: str
) -> Evaluation:
    """Fractions from counts; classes and rounds without pictures are left out."""
    right, total = confusion.diagonal(), row_sums(confusion)
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
    balanced = sum(per_class.values()) / len(per_class) if per_class else 0.0
    confused = top_confusions(confusion, names)
    return Evaluation(version, images, accuracy, balanced, per_class, per_task, confusion, names, confused)


def top_confusions(confusion: Tensor, classes: Sequence[str], most: int = _LISTED) -> list[dict[str, Any]]:
    """Pairs of classes that are taken for each other, the most pictures first.

    >>> top_confusions(torch.tensor([[6, 2], [0, 4]]), ("kestrel", "falcon"))
    [{'true': 'kestrel', 'predicted': 'falcon', 'count': 2, 'share': 0.25}]
    """
    wrong = [(true, predicted) for true, predicted in confusion.nonzero().tolist() if true != predicted]
    counts = {pair: int(confusion[pair]) for pair in wrong}
    pairs = sorted(wrong, key=lambda pair: (-counts[pair], pair))
    totals = row_sums(confusion).tolist()
    return [
        {
            "true": classes[true],
            "predicted": classes[predicted],
            "count": counts[true, predicted],
            "share": counts[true, predicted] / totals[true],
        }
        for true, predicted in pairs[:most]
    ]


def task_cells(confusion: Tensor, classes: Sequence[str], tasks: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """Accuracy on each round's classes, from counts; None where a round has no pictures here."""
    index = {name: position for position, name in enumerate(classes)}
    right, totals = confusion.diagonal(), row_sums(confusion)
    cells: list[float | None] = []
    for task in tasks:
        rows = [index[name] for name in task["annotated"] if name in index]
        total = int(totals[rows].sum())
        cells.append(right[rows].sum().item() / total if total else None)
    return cells


class Look(NamedTuple):
    """What a network makes of pictures.

    Attributes:
        classes: int64 [n, top], channels of the best classes, best first.
        scores: [n, top], their softmax at the head's temperature.
        known: [n] bool, whether they are like pictures of some class that was learned; None where that cannot be said.
    """

    classes: Tensor
    scores: Tensor
    known: Tensor | None


@torch.no_grad()
def look(
    network: Network,
    store: PictureStore,
    image_size: int,
    progress: Progress,
    check: Callable[[], None] = lambda: None,
    *,
    top: int = 1,
    known: bool = True,
) -> Look:
    """The best classes of the plain views, and with ``known`` whether they look like a known one; one forward each.

    What is kept of a picture does not grow with the number of classes. ``check`` may raise between batches.
    """
    head = network.head
    assert isinstance(head, PooledHead)
    limits = head.known_gaussians() if known else None
    options: dict[str, Any] = {"image_size": image_size, "batch_size": _BATCH, "what": "predicting", "check": check}

    def judged(pooled: Tensor, logits: Tensor) -> Tensor:
        logits = logits.float()
        # Of equal logits the first class, however many classes or places are asked for; topk would take any.
        ranked = logits.argmax(1, True) if top == 1 else logits.sort(dim=1, descending=True, stable=True).indices
        best = ranked[:, :top]
        rows = [best.float(), (logits / head.temperature).softmax(1).gather(1, best)]
        if limits is not None:
            gaussians, limit = limits
            rows.append((nearest_distance(pooled, gaussians) <= limit).to(logits)[:, None])
        return torch.cat(rows, dim=1)

    def answer(images: Tensor) -> Tensor:
        tokens, context = network.tokens(images)
        return judged(tokens.pooled, network.adapter.calibrate(head(tokens), context))

    if network.memory is not None and type(network.adapter).calibrate is Adapter.calibrate:
        features = recalled_features(network, store, progress=progress, **options).to(network.device)
        found = judged(features, head.logits(features)).cpu()
    else:
        found = run_pass(store, answer, progress=progress, **options)
    width = found.shape[1] // 2
    accepted = None if limits is None else found[:, -1] > 0
    return Look(found[:, :width].long(), found[:, width : 2 * width], accepted)


def name_pictures(
    network: Network, store: PictureStore, classes: Sequence[str], image_size: int, top: int, progress: Progress
) -> list[Prediction]:
    """The best classes of each picture, with softmax scores at the head's temperature."""
    order, best, known = look(network, store, image_size, progress, top=max(1, top))
    named = [
        tuple((classes[index], value) for index, value in zip(which, values, strict=True))
        for which, values in zip(order.tolist(), best.tolist(), strict=True)
    ]
    likeness = [None] * len(named) if known is None else known.tolist()
    calibrated = is_calibrated(network)
    return [
        Prediction(picture.name, *row[0], row, like, calibrated)
        for picture, row, like in zip(store.pictures, named, likeness, strict=True)
    ]


def is_calibrated(network: Network) -> bool:
    """Whether held-out pictures of the last round gave the temperature of the scores."""
    return bool(getattr(network.head, "calibrated", False))


def targets_of(store: PictureStore, classes: Sequence[str]) -> Tensor:
    """Indices [n] of the pictures' classes."""
    position = {name: index for index, name in enumerate(classes)}
    return torch.tensor([position[str(label)] for label in store.pictures.labels])


def count_outcomes(
    network: Network, store: PictureStore, classes: Sequence[str], image_size: int, progress: Progress
) -> tuple[Tensor, dict[str, Any]]:
    """Counts [K, K] of true against predicted classes, and what else an ``Evaluation`` says of the pictures."""
    best, scores, known = look(network, store, image_size, progress)
    targets, predicted, score = targets_of(store, classes), best[:, 0], scores[:, 0]
    right = predicted == targets
    wrong = (~right).nonzero().flatten()
    surest = wrong[score[wrong].argsort(descending=True, stable=True)][:_LISTED].tolist()
    details: dict[str, Any] = {
        "ece": expected_calibration_error(score, right),
        "calibrated": is_calibrated(network),
        "accepted": None if known is None else known.double().mean().item(),
        "worst": [
            {
                "path": store.pictures[index].name,
                "true": classes[int(targets[index])],
                "predicted": classes[int(predicted[index])],
                "score": score[index].item(),
            }
            for index in surest
        ],
    }
    return confusion_counts(targets, predicted, len(classes)), details


def accepted_share(network: Network, store: PictureStore, image_size: int, progress: Progress) -> float | None:
    """Fraction of pictures that are called known; of pictures of other classes this is the false-accept rate.

    None where it cannot be said.
    """
    known = look(network, store, image_size, progress).known
    return None if known is None else known.double().mean().item()


def count_confusion(
    network: Network,
    store: PictureStore,
    classes: Sequence[str],
    image_size: int,
    progress: Progress,
    check: Callable[[], None] = lambda: None,
) -> Tensor:
    """Counts [K, K] of true against predicted classes over labelled pictures."""
    predicted = look(network, store, image_size, progress, check, known=False).classes[:, 0]
    return confusion_counts(targets_of(store, classes), predicted, len(classes))
