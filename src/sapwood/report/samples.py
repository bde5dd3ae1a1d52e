"""Pictures for a report, with what the model says of them: the same ones every time, spread over the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sapwood.data.decode import decode
from sapwood.data.legend import IGNORE
from sapwood.data.masks import MaskedPictures, decode_mask
from sapwood.data.names import shown
from sapwood.data.pictures import Pictures
from sapwood.errors import DataError
from sapwood.kinds import kind_of
from sapwood.kinds.classification import check_known
from sapwood.progress import Progress
from sapwood.record import former_names
from sapwood.report.content import MaskSample, Sample
from sapwood.report.markup import THUMBNAIL

if TYPE_CHECKING:
    from sapwood.learner import Learner

_MASK_THUMBNAIL = 256  # pixels of the longer side: three stand side by side
_NAMED, _MASKED = 24, 12


def read_samples(learner: Learner, data: Any) -> Pictures:
    """Labelled pictures to show, of the kind that the learner learns.

    Raises:
        DataError: they are of another kind, or of classes that are not known.
    """
    if (found := kind_of(data)) is not learner.kind:
        raise DataError(
            f"{learner.state.path} learns {learner.kind.name}, but these data are for {found.name}; name other data"
        )
    pictures = learner.kind.read_tests(data)
    if not isinstance(pictures, MaskedPictures):
        check_known(pictures.classes, learner.classes_, former_names(learner.record))
    return pictures


def name_samples(
    learner: Learner, pictures: Pictures, count: int | None, skip_bad: bool, progress: Progress
) -> tuple[Sample, ...]:
    """Pictures with the classes that they are, and are said to be."""
    chosen = pictures.subset(spread(pictures.labels, _NAMED if count is None else count))
    told = learner.predict(chosen, top=1, skip_bad=skip_bad, progress=progress)
    predictions = {prediction.path: prediction for prediction in told}
    return tuple(
        Sample(decode(picture, shorter=THUMBNAIL), found.label, found.score, picture.label, short(picture.name))
        for picture in chosen
        if (found := predictions.get(picture.name))
    )


def draw_samples(
    learner: Learner, pictures: MaskedPictures, count: int | None, skip_bad: bool, progress: Progress
) -> tuple[MaskSample, ...]:
    """Pictures with their true masks and those drawn, at the size of a thumbnail."""
    channels = {name: index for index, name in enumerate(learner.classes_)}
    table = pictures.legend.lookup(channels)
    samples = []
    for index in evenly(len(pictures), _MASKED if count is None else count):
        chosen = pictures.subset([index])
        try:
            values = decode_mask(chosen[0], pictures.legend, size=None)
            (found,) = learner.predict(chosen)
            if found.mask.shape != values.shape:
                decode_mask(chosen[0], pictures.legend, size=found.mask.shape)
        except DataError as error:
            if not skip_bad:
                raise
            progress.note(f"skipped {error}")
            continue
        truth = table[values]
        counted = truth != IGNORE
        right = float((found.mask == truth)[counted].mean()) if counted.any() else None
        image, *masks = _reduced(found.image, truth, found.mask)
        samples.append(MaskSample(image, masks[0], masks[1], right, short(chosen[0].name)))
    return tuple(samples)


def _reduced(image: np.ndarray, *masks: np.ndarray) -> list[np.ndarray]:
    """A picture and its masks at the size of a thumbnail; classes are not mixed."""
    picture = Image.fromarray(image)
    picture.thumbnail((_MASK_THUMBNAIL, _MASK_THUMBNAIL), Image.Resampling.LANCZOS)
    small = [Image.fromarray(mask).resize(picture.size, Image.Resampling.NEAREST) for mask in masks]
    return [np.array(each) for each in (picture, *small)]


def short(name: str) -> str:
    """The end of a path: a report is passed on, and what lies above is nobody's business.

    >>> short("private/2026/birds/owl/1.jpg")
    'birds/owl/1.jpg'
    """
    return shown("/".join(Path(name).parts[-3:]))


def spread(labels: Sequence[str | None], count: int) -> list[int]:
    """Indices of at most ``count`` items, as evenly over the labels as they go, in ascending order.

    >>> spread(["cat", "cat", "cat", "dog"], 2)[-1]
    3
    """
    seen: Counter[str | None] = Counter()
    turns: list[tuple[int, int, int]] = []
    for index in np.random.default_rng(0).permutation(len(labels)).tolist():
        turns.append((seen[labels[index]], len(turns), index))
        seen[labels[index]] += 1
    return sorted(index for _, _, index in sorted(turns)[:count])


def evenly(total: int, count: int) -> list[int]:
    """Indices of at most ``count`` of ``total`` items, the middles of as many equal parts.

    >>> evenly(12, 3), evenly(2, 12)
    ([2, 6, 10], [0, 1])
    """
    count = min(total, count)
    return [(2 * part + 1) * total // (2 * count) for part in range(count)]
