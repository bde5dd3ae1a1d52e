"""What was right in each test picture after the last round, and what was taken for known that is not yet."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sapwood.data.pictures import Pictures
from sapwood.data.streams import Stream
from sapwood.evaluation import look
from sapwood.learner import Learner
from sapwood.mask_evaluation import MaskOptions, count_pixels
from sapwood.progress import Progress


def outcomes(learner: Learner, tests: Pictures, file: Path, progress: Progress) -> dict[str, Any]:
    """One bit a picture (``correct``), or the pixel counts of each picture, written beside ``file`` (``counts``).

    Args:
        learner: after its last round.
        tests: the pictures that it was measured on.
        file: of the row; counts go into an ``npz`` of the same name.
        progress: listens.

    Returns:
        ``correct``: base64 of packed bits (numpy.packbits), by class and picture name, so that a bit is the same
        picture whatever the order of rounds was; None for masks; ``counts``: name of the file with int64
        [n, 3, K] (intersection, predicted, truth), None for classes.
    """
    size, names = learner.record["image_size"], learner.classes_
    store = learner.kind.load(tests, size, progress, skip_bad=False)
    if learner.kind.name == "segmentation":
        found: list[Tensor] = []

        def keep(confusion: Tensor) -> None:
            found.append(torch.stack([confusion.diagonal(), confusion.sum(0), confusion.sum(1)]))

        count_pixels(learner.network, store, names, size, MaskOptions(), progress, look=keep)
        aside = file.with_suffix(".tmp.npz")
        np.savez_compressed(aside, counts=torch.stack(found).numpy())
        aside.replace(file.with_suffix(".npz"))
        return {"correct": None, "counts": {"file": file.with_suffix(".npz").name}}
    position = {name: index for index, name in enumerate(names)}
    labels = [str(label) for label in store.pictures.labels]
    targets = np.array([position[label] for label in labels])
    predicted = look(learner.network, store, size, progress, known=False).classes[:, 0].numpy()
    right = (predicted == targets)[np.lexsort(([picture.name for picture in store.pictures], labels))]
    return {"correct": base64.b64encode(np.packbits(right).tobytes()).decode(), "counts": None}


def false_accept(learner: Learner, stream: Stream) -> float | None:
    """Fraction of the test pictures of classes still to come that are taken for known ones.

    The limit is the one that ``predict`` goes by: meant to let 95 % of known pictures in. None after the last round,
    for masks, and where nothing can be said.
    """
    if not learner.kind.knows_unknown:
        return None
    size, known = learner.record["image_size"], set(learner.classes_)
    tests = stream.tests(len(stream.rounds) - 1)
    others = tests.subset([index for index, label in enumerate(tests.labels) if label not in known])
    if not len(others):
        return None
    store = learner.kind.load(others, size, Progress(), skip_bad=False)
    return learner.kind.accepted(learner.network, store, size, Progress())
