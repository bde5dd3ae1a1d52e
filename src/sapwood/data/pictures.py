"""One labelled picture and an immutable sequence of them, whatever they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
from PIL import Image

from sapwood.errors import DataError

Source = Path | bytes | np.ndarray | Image.Image | Callable[[], bytes]
"""A file, its bytes, pixels (uint8 [H, W, 3] RGB, [H, W, 4] RGBA or [H, W] grey), a Pillow image, or a function
that fetches the bytes when they are wanted (so that a data set on disk need not fit into memory)."""

Mask = Path | bytes | np.ndarray | Callable[[], bytes]
"""A file, its bytes, values (uint8 [H, W]), or a function that fetches the bytes when they are wanted."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture not decoded yet; ``name`` is what messages show (for files the path as it was given).

    What it shows is said by ``label``, or pixel by pixel by ``mask`` (see ``sapwood.data.masks``). ``saliency`` is a
    map of where something stands out, whatever it is. ``annotated`` are the classes that the mask labels, where these
    are not all of its legend: what it calls background may then be of any other class.
    """

    name: str
    source: Source
    label: str | None = None
    mask: Mask | None = None
    saliency: Path | None = None
    annotated: frozenset[str] | None = None


class Pictures(Sequence[Picture]):
    """An immutable sequence of pictures.

    >>> zeros = np.zeros((2, 2, 3), np.uint8)
    >>> pictures = Pictures([Picture("a", zeros, "cat"), Picture("b", zeros, "dog"), Picture("c", zeros, "cat")])
    >>> pictures.classes, pictures.of(["cat"]).labels
    (('cat', 'dog'), ('cat', 'cat'))
    """

    def __init__(self, pictures: Iterable[Picture] = ()) -> None:
        self._pictures = tuple(pictures)
        self._labels = tuple(picture.label for picture in self._pictures)

    @property
    def labels(self) -> tuple[str | None, ...]:
        """The label of each picture, in order; None where there is none."""
        return self._labels

    @property
    def classes(self) -> tuple[str, ...]:
        """The distinct labels in the order in which they first appear."""
        return tuple(dict.fromkeys(label for label in self._labels if label is not None))

    def subset(self, indices: Iterable[int]) -> Self:
        """The pictures at ``indices``, in that order."""
        return self._with(self._pictures[index] for index in indices)

    def of(self, classes: Iterable[str]) -> Self:
        """The pictures whose label is one of ``classes``, in their present order."""
        wanted = set(classes)
        return self._with(picture for picture in self._pictures if picture.label in wanted)

    def _with(self, pictures: Iterable[Picture]) -> Self:
        """Other pictures, with whatever else this object holds."""
        return type(self)(pictures)

    def __add__(self, other: Pictures) -> Pictures:
        return Pictures((*self._pictures, *other))

    def __len__(self) -> int:
        return len(self._pictures)

    def __iter__(self) -> Iterator[Picture]:
        return iter(self._pictures)

    @overload
    def __getitem__(self, index: int) -> Picture: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Picture | Self:
        return self.subset(range(len(self))[index]) if isinstance(index, slice) else self._at(index)

    def _at(self, index: int) -> Picture:
        return self._pictures[index]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} pictures, {len(self.classes)} classes)"


def as_picture(thing: Any, *, label: str | None = None, name: str | None = None) -> Picture:
    """A Picture from what people hold in their hands.

    Args:
        thing: a Picture (returned as it is, with ``label`` if one is given), a path, encoded bytes, a Pillow image,
            a uint8 array [H, W], [H, W, 3] or [H, W, 4], or a torch tensor [H, W], [1, H, W] or [3, H, W]
            (uint8, or floating point within [0, 1]).
        label: the class.
        name: what messages shall call it; by default the path, or the kind of thing it is.
    """
    if isinstance(thing, Picture):
        return thing if label is None else replace(thing, label=label)
    if isinstance(thing, str | Path):
        return Picture(name or str(thing), Path(thing), label)
    if isinstance(thing, bytes):
        return Picture(name or f"<{len(thing)} bytes>", thing, label)
    if isinstance(thing, Image.Image):
        return Picture(name or getattr(thing, "filename", "") or "<Pillow image>", thing, label)
    if isinstance(thing, np.ndarray):
        return Picture(name or f"<array {list(thing.shape)}>", thing, label)
    if hasattr(thing, "detach"):
        name = name or f"<tensor {list(thing.shape)}>"
        values = thing.detach().cpu()
        return Picture(name, _pixels((values.float() if values.is_floating_point() else values).numpy(), name), label)
    raise DataError(f"expected a path, bytes, a Pillow image, an array or a tensor, got {type(thing).__name__}")


def _pixels(values: np.ndarray, name: str) -> np.ndarray:
    """Channels-first pixels (torch's habit) as uint8 [H, W] or [H, W, 3]."""
    if values.ndim == 3 and values.shape[0] in (1, 3):
        values = values[0] if values.shape[0] == 1 else values.transpose(1, 2, 0)
    elif values.ndim != 2:
        raise DataError(f"{name}: a tensor must be [H, W], [1, H, W] or [3, H, W], one picture at a time")
    if values.dtype.kind == "f":
        if not (values.min(initial=0.0) >= 0 and values.max(initial=0.0) <= 1):
            raise DataError(f"{name}: floating-point pixels must lie within [0, 1]; pass them before normalisation")
        values = np.rint(values * 255).astype(np.uint8)
    return np.ascontiguousarray(values)
