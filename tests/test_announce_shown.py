"""What each picture of a round shows, kept so that ten thousand classes fit."""

from __future__ import annotations

import numpy as np

from sapwood.channels import channels_shown
from sapwood.data.pictures import Pictures, as_picture
from sapwood.data.store import PictureStore
from sapwood.kinds import KINDS


def test_of_pictures_with_one_class_each_one_number_is_kept() -> None:
    labels = ["a", "c", "c", "a", "d", "c", "c", "d"]
    made = [as_picture(np.full((8, 8, 3), n, np.uint8), name=str(n), label=label) for n, label in enumerate(labels)]
    known = ("a", "b")
    round_ = KINDS["classification"].prepare(PictureStore(Pictures(made), 8), known, 1, "second", 0, 0.3, 8)
    assert round_.names == ("a", "b", "c", "d")
    shown = channels_shown(round_)
    assert shown.shown.shape == (8,)
    assert shown.counts() == [2, 0, 4, 2]
    ordered = [picture.label for picture in (*round_.train.pictures, *round_.held.pictures)]
    for channel, name in enumerate(round_.names):
        assert shown.of(channel).tolist() == [label == name for label in ordered]
