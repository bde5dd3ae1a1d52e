"""Streams on which settings may be chosen: their test pictures are held-out training pictures."""

from __future__ import annotations

from dataclasses import replace

from sapwood.data.benchmarks import Round, Stream
from sapwood.data.splits import validation_split


def validation_stream(stream: Stream, share: float, seed: int) -> Stream:
    """The stream with its test pictures replaced by a share of its training pictures, which are taken out of these.

    Choosing settings on it leaves the test set unseen.
    """
    rounds = []
    for part in stream.rounds:
        train, held = validation_split(part.train.labels, share, seed)
        rounds.append(Round(part.name, part.train.subset(train), part.train.subset(held)))
    return replace(stream, name=f"{stream.name}/validation", rounds=tuple(rounds))
