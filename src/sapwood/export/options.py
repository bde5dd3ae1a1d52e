"""What a format is asked for, what it answers, and what a format is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from sapwood.data.transforms import normalise
from sapwood.export.plain import Plain
from sapwood.progress import Progress

Dtype = Literal["fp32", "fp16", "int8"]
DTYPES: tuple[Dtype, ...] = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Labelled:
    """Pictures whose right answer is known, to measure what a smaller dtype costs.

    Attributes:
        views: plain views uint8 [n, H, W, 3].
        targets: int64 [n], channels of the logits; of masks [n, H, W], where 255 is left out.
        source: where they come from, as the user named it.
    """

    views: Tensor
    targets: Tensor
    source: str


@dataclass(frozen=True)
class Options:
    """What an export was asked for.

    Attributes:
        image_size: (height, width) of the plain view in pixels.
        views: pictures to check on, plain views uint8 [n, H, W, 3].
        views_from: what these pictures are, in words.
        task: of an adapter that chooses, the round (from 1) whose expert leaves; None for all.
        dtype: of the weights in the file.
        preprocessing: resize and normalisation belong into the file.
        labelled: pictures with their classes, if the user gave some.
        target: name of the file or folder in the end, for messages and for a single file's own name.
        progress: is told of what takes long.
    """

    image_size: tuple[int, int]
    views: Tensor
    views_from: str
    task: int | None = None
    dtype: Dtype = "fp32"
    preprocessing: bool = False
    labelled: Labelled | None = None
    target: str = "OUT"
    progress: Progress = field(default_factory=Progress)

    def pixel_values(self, plain: Plain) -> Tensor:
        """``views`` as the network takes them, normalised float32 [n, 3, H, W]."""
        return normalise(self.views, plain.backbone.info.mean, plain.backbone.info.std)


@dataclass(frozen=True)
class Check:
    """How the written files answer beside the network they were made of, once they were opened again.

    Attributes:
        max_difference: largest absolute difference of the outputs on the pictures to check on.
        limit: above it the export fails.
        notes: what the user should know, a line each.
        facts: for the card and for sapwood-export.json, as JSON.
        usage: how to load it, Markdown with a snippet, for the card.
    """

    max_difference: float
    limit: float
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    usage: str = ""


@dataclass(frozen=True)
class Format:
    """A way to leave; an entry of ``FORMATS``.

    Attributes:
        summary: one line of what it is.
        write: writes into an empty folder, opens what it wrote by the tool it is made for, and compares. It is called
            for an unmerged network too, and refuses it by ``plain.refuse_unmerged`` if it cannot hold it.
        suffix: OUT may be one file, if its name ends so; the folder may then hold one file of that suffix.
        takes: which of the options ``dtype`` and ``preprocessing`` it knows.
    """

    summary: str
    write: Callable[[Plain, Path, Options], Check]
    suffix: str | None = None
    takes: frozenset[str] = frozenset()
