"""Pictures with masks that a state keeps to measure on: what is written of them, and how they are read again."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from sapwood.data.legend import BACKGROUND, IGNORE, Legend
from sapwood.data.mask_store import MaskStore
from sapwood.data.masks import MaskedPictures
from sapwood.data.palette import write_mask
from sapwood.data.pictures import Picture
from sapwood.probes import Probe, Shown, as_png


def shown_classes(store: MaskStore) -> list[Shown]:
    """The classes that have pixels in each mask; a picture is the same one under any mask."""
    names = store.pictures.legend.names
    found = []
    for sha256, counts in zip(store.picture_sha256, store.counts, strict=True):
        labels = dict.fromkeys(names.get(value) for value in np.flatnonzero(counts).tolist())
        found.append(Shown(sha256, tuple(label for label in labels if label is not None and label != BACKGROUND)))
    return found


def kept_masks(store: MaskStore, table: np.ndarray, channels: Sequence[int], names: Sequence[str]) -> list[Probe]:
    """Decoded pictures with masks, as they are kept.

    Args:
        store: the pictures.
        table: uint8 [256], value in a mask to channel, 255 for ignored.
        channels: those that masks of the round have pixels of, the background's left out.
        names: of the channels.
    """
    values = np.full(256, IGNORE, np.uint8)
    values[0] = 0
    values[list(channels)] = range(1, len(channels) + 1)
    annotated = tuple(names[channel] for channel in channels)
    probes = []
    for index, (sha256, classes) in enumerate(shown_classes(store)):
        stream = io.BytesIO()
        write_mask(stream, values[table[store.mask(index)]])
        probes.append(Probe(sha256, classes, as_png(store[index]), stream.getvalue(), annotated))
    return probes


def masked_pictures(probes: Sequence[Probe]) -> MaskedPictures:
    """Pictures with masks to measure on, which label each the classes of its own round alone."""
    names = list(dict.fromkeys(name for probe in probes for name in probe.annotated if name is not None))
    place = {name: value for value, name in enumerate(names, 1)}
    pictures = []
    for number, probe in enumerate(probes):
        assert probe.mask is not None
        values = np.full(256, IGNORE, np.uint8)
        values[: len(probe.annotated) + 1] = [0, *(IGNORE if n is None else place[n] for n in probe.annotated)]
        told = frozenset(name for name in probe.annotated if name is not None)
        mask = values[np.array(Image.open(io.BytesIO(probe.mask)), dtype=np.uint8)]
        pictures.append(Picture(f"probe {number}", probe.content, mask=mask, annotated=told))
    return MaskedPictures(pictures, Legend({0: BACKGROUND, **{value: name for name, value in place.items()}}))
