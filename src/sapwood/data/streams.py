"""Tasks in the order in which they are learned, with what they are measured on."""

from __future__ import annotations

import functools
import hashlib
import operator
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from sapwood.data.decode import content_sha256
from sapwood.data.legend import Legend
from sapwood.data.masks import MaskedPictures, mask_name
from sapwood.data.names import shown
from sapwood.data.pictures import Picture, Pictures
from sapwood.errors import DataError

_LONGEST_NAME = 40
_NAMED = 2  # classes that stand in a name that would be longer


@dataclass(frozen=True)
class Round:
    """One task: its training pictures, and the test pictures that it adds to the measure.

    Of pictures with masks the training legend names the classes annotated in this round, and the test pictures may be
    those of all rounds.
    """

    name: str
    train: Pictures
    test: Pictures


@dataclass(frozen=True)
class Stream:
    """Tasks in the order in which they are learned.

    Attributes:
        name: of the benchmark.
        rounds: the tasks.
        classes: of all tasks, in the order in which they are met.
        order_seed: of the order of the classes (or of the domains, where every task has all classes).
        split: how training and test pictures were divided, where a data set comes with several divisions or none.
        domains: whether rounds bring new domains of the same classes, so that a round is known by its test pictures
            and not by its classes.
    """

    kind: ClassVar[str] = "classification"

    name: str
    rounds: tuple[Round, ...]
    classes: tuple[str, ...]
    order_seed: int | None
    split: str = field(default="", kw_only=True)
    domains: bool = field(default=False, kw_only=True)

    def tests(self, after: int) -> Pictures:
        """What is measured after a round: the test pictures of all rounds up to it.

        Args:
            after: position of the round; 0 is the first.
        """
        return _joined(part.test for part in self.rounds[: after + 1])

    def joint(self, upto: int) -> Pictures:
        """All training pictures up to a round, for methods that learn everything at once.

        Args:
            upto: position of the last round; 0 is the first.
        """
        return _joined(part.train for part in self.rounds[: upto + 1])

    def sha256(self) -> str:
        """Of every picture and label, in order: two runs on equal data have equal sums."""
        digest = hashlib.sha256()
        for heading, lines in self._lines:
            digest.update("".join([heading, *lines]).encode())
        return digest.hexdigest()

    def pictures_sha256(self) -> str:
        """As ``sha256``, but of the pictures and labels alone: the same for every order of the classes."""
        parts = enumerate(lines for _, lines in self._lines)
        return hashlib.sha256(
            "".join(sorted({f"{place % 2} {line}" for place, part in parts for line in part})).encode()
        ).hexdigest()

    @functools.cached_property
    def _lines(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """What sums are made of: of each round the training part, then the test part; a heading, a line a picture."""
        line = functools.cache(self._line)
        parts = ((task.name, part) for task in self.rounds for part in (task.train, task.test))
        return tuple((self._heading(name, part), tuple(map(line, part))) for name, part in parts)

    def _heading(self, task: str, part: Pictures) -> str:
        return f"{task} {len(part)}\n"

    def _line(self, picture: Picture) -> str:
        return f"{picture.label} {content_sha256(picture)}\n"


@dataclass(frozen=True)
class MaskStream(Stream):
    """Tasks of pictures with masks. Test pictures bear the names of all classes of the stream.

    Attributes:
        legend: of the training masks, with all classes of the stream.
        background: whether the benchmark's headline counts background in its mean IoU.
    """

    kind: ClassVar[str] = "segmentation"

    legend: Legend
    background: Literal["include", "exclude"]

    def joint(self, upto: int) -> MaskedPictures:
        """Every training picture up to a round once, with the labels of all classes annotated until then."""
        parts = [part.train for part in self.rounds[: upto + 1]]
        pictures = dict.fromkeys(picture for part in parts for picture in part)
        return MaskedPictures(
            pictures, self.legend.keep({name for part in parts for name in part.classes}, "background")
        )

    def _heading(self, task: str, part: Pictures) -> str:
        assert isinstance(part, MaskedPictures)
        return f"{task} {len(part)} {sorted(part.legend.names.items())}\n"

    def _line(self, picture: Picture) -> str:
        assert picture.mask is not None
        return f"{content_sha256(picture)} {content_sha256(Picture(mask_name(picture), picture.mask))}\n"


def data_root(data: Path | None) -> Path | None:
    """Where data sets lie: ``data``, else the environment variable ``SAPWOOD_DATA``; None if neither says."""
    chosen = data or os.environ.get("SAPWOOD_DATA")
    return Path(chosen) if chosen else None


def data_folder(data: Path | None, folders: Sequence[str], wanted: Sequence[str], name: str) -> Path:
    """Where a data set lies.

    Args:
        data: where data sets lie; by default the environment variable ``SAPWOOD_DATA``.
        folders: the data set's own folder, by the names that it usually bears; ``data`` itself will do, too.
        wanted: files or folders that it must hold.
        name: of the benchmark, for messages.

    Raises:
        DataError: nothing is named, or it is not there; the message names what is wanted and where it was sought.
    """
    return data_layout(data, folders, [wanted], name)[0]


def data_layout(
    data: Path | None, folders: Sequence[str], layouts: Sequence[Sequence[str]], name: str
) -> tuple[Path, int]:
    """Where a data set lies that people keep in several layouts, and which of ``layouts`` it is there.

    Args:
        data: as for ``data_folder``, like ``folders`` and ``name``.
        layouts: for each, the files or folders that it must hold (``*`` stands for any text); the first that is
            complete is taken.

    Raises:
        DataError: as for ``data_folder``.
    """
    root = data_root(data)
    listed = ", or ".join(" and ".join(filter(None, (", ".join(each[:-1]), each[-1]))) for each in layouts)
    if root is None:
        raise DataError(f"{name}: needs {listed}; name their folder with --data or SAPWOOD_DATA")
    places = [*(root / folder for folder in folders), root]
    partly = []
    for place in places:
        for number, wanted in enumerate(layouts):
            lacks = [one for one in wanted if not _is_in(place, one)]
            if not lacks:
                return place, number
            if len(lacks) < len(wanted):
                partly.append(f"{name}: {shown(place)} has no {' and no '.join(lacks)}")
    raise DataError([*partly, f"{name}: {listed} are neither in {' nor in '.join(map(shown, places))}"][0])


def round_name(classes: Sequence[str]) -> str:
    """A task's name from its classes; the last of many are only counted.

    >>> round_name(["Sky", "Road"]), round_name([f"class {number}" for number in range(20)])
    ('Sky+Road', 'class 0+class 1+18 more')
    """
    whole = "+".join(classes)
    if len(whole) <= _LONGEST_NAME or len(classes) <= _NAMED + 1:
        return whole
    return "+".join([*classes[:_NAMED], f"{len(classes) - _NAMED} more"])


def _is_in(place: Path, wanted: str) -> bool:
    return any(place.glob(wanted)) if "*" in wanted else (place / wanted).exists()


def _joined(parts: Iterable[Pictures]) -> Pictures:
    """All parts one after the other; the same part twice is taken once."""
    return functools.reduce(operator.add, dict.fromkeys(parts))
