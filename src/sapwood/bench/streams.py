"""Streams on which settings may be chosen: their test pictures are held-out training pictures."""

from __future__ import annotations

from dataclasses import replace

from sapwood.data.benchmarks import Round, Stream
from sapwood.data.splits import validation_split
from sapwood.errors import DataError


def validation_stream(stream: Stream, share: float, seed: int = 0) -> Stream:
    """The stream with its test pictures replaced by a share of its training pictures, which are taken out of these.

    Choosing settings on it leaves the test set unseen. The same pictures are held out whatever the order of classes.

    Raises:
        DataError: a class has a single picture.
    """
    rounds = []
    for part in stream.rounds:
        train, held = validation_split(part.train.labels, share, seed, smallest=2)
        labels = part.train.labels
        if alone := sorted({str(label) for label in labels} - {str(labels[index]) for index in held}):
            raise DataError(f"{stream.name}: {alone[0]} has a single training picture, so none can be held out")
        rounds.append(Round(part.name, part.train.subset(train), part.train.subset(held)))
    return replace(stream, name=f"{stream.name}/validation", rounds=tuple(rounds))
