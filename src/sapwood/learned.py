"""Which pictures a state has learned, and which of those that are given it has learned already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from sapwood.data.names import shown
from sapwood.data.pictures import Picture
from sapwood.errors import DataError
from sapwood.record import PICTURES, former_names, of_json_lines
from sapwood.state import State


class Lesson(NamedTuple):
    """A picture in a round.

    Attributes:
        round: its name.
        label: id of the picture's class; None for masks.
        picture: sha256 of the picture alone; of masks that early releases learned, with its mask.
        was: names under which it was learned before a repair counted it for this class.
    """

    round: str
    label: int | None
    picture: str
    was: tuple[str, ...] = ()


class Tests(Protocol):
    """Decoded pictures to measure on."""

    @property
    def sha256(self) -> Sequence[str]:
        """Of each picture with all that belongs to it."""

    @property
    def picture_sha256(self) -> Sequence[str]:
        """Of each picture alone."""


Earlier = Mapping[str, Sequence[Lesson]]
"""All lessons of a picture that was learned, by its sha256 (of masks: hashed with it)."""


@dataclass(frozen=True)
class Duplicate:
    """A picture that an earlier round has learned, byte by byte.

    Attributes:
        picture: as it was given.
        label: its class now; None for masks.
        round: name of the earlier round.
        learned_as: its class there, by the name of today; None for masks, or if the class is gone.
        left_out: it is not learned again.
    """

    picture: str
    label: str | None
    round: str
    learned_as: str | None
    left_out: bool = False


def learned_pictures(state: State, tasks: Sequence[Mapping[str, Any]] | None = None) -> dict[str, list[Lesson]]:
    """Every picture that was learned, in all rounds or in ``tasks``; see ``Earlier``."""
    found: dict[str, list[Lesson]] = {}
    for task, row in _rows(state, state.version.record["tasks"] if tasks is None else tasks):
        lesson = Lesson(task, row.get("label"), row.get("picture", row["sha256"]), tuple(row.get("was", ())))
        found.setdefault(row["sha256"], []).append(lesson)
    return found


def learned_files(earlier: Earlier) -> set[str]:
    """sha256 of every picture that was learned, under whatever mask; of early releases' masks with the mask."""
    return {lesson.picture for lessons in earlier.values() for lesson in lessons}


def count_learned(files: Set[str], tests: Tests) -> int:
    """How many different pictures to measure on are among those that were learned, see ``learned_files``."""
    pairs = zip(tests.picture_sha256, tests.sha256, strict=True)
    return len({picture for picture, whole in pairs if picture in files or whole in files})


def find_duplicates(
    pictures: Sequence[Picture],
    digests: Sequence[str],
    earlier: Earlier,
    record: Mapping[str, Any],
    classes: Set[str],
    relearn: bool,
) -> dict[int, Duplicate]:
    """Those of the given pictures that were learned, by their place.

    One that was learned as the very class that it has here, by today's name or that before a repair, is left out unless
    it is to be learned again: it would count twice in every sum. So is a picture with its mask that a round has learned
    which labelled all ``classes``, those that the masks now given show; where they show others as well, it stays.

    Raises:
        DataError: nothing is left to learn from.
    """
    names: dict[int | None, str] = {entry["id"]: entry["name"] for entry in record["classes"]}
    today = set(names.values())  # a former name that another class bears now means that class
    ever = {
        entry["id"]: (entry["name"], *(name for name in entry.get("was", ()) if name not in today))
        for entry in record["classes"]
    }
    labelled = {task["name"]: frozenset(task["annotated"]) for task in record["tasks"]}
    former = former_names(record)
    wanted = {former.get(name, name) for name in classes}
    found = {}
    for index, (picture, sha256) in enumerate(zip(pictures, digests, strict=True)):
        if sha256 in earlier:
            label = picture.label
            if label is None:
                same = [each for each in earlier[sha256] if wanted <= labelled.get(each.round, frozenset())]
            else:
                same = [each for each in earlier[sha256] if label in (*ever.get(each.label, ()), *each.was)]
            lesson = same[-1] if same else earlier[sha256][-1]
            left_out = bool(same) and not relearn
            found[index] = Duplicate(picture.name, label, lesson.round, names.get(lesson.label), left_out)
    if found and sum(each.left_out for each in found.values()) == len(pictures):
        rounds = ", ".join(sorted({repr(each.round) for each in found.values()}))
        raise DataError(
            f"all {len(pictures)} pictures were learned before (round {rounds}), so there is nothing to learn; "
            "--relearn learns them again"
        )
    return found


def repeated(pictures: Sequence[Picture], digests: Sequence[str]) -> list[str]:
    """What to say of pictures that come twice in one round, by their bytes: as another class, or counted twice."""
    first: dict[str, Picture] = {}
    apart: list[tuple[Picture, Picture]] = []
    twice: list[tuple[Picture, Picture]] = []
    for picture, sha256 in zip(pictures, digests, strict=True):
        other = first.setdefault(sha256, picture)
        if other is not picture:
            (twice if other.label == picture.label else apart).append((other, picture))
    said = []
    if apart:
        other, picture = apart[0]
        pair = f"{shown(other.name)} as {other.label!r}, {shown(picture.name)} as {picture.label!r}"
        said.append(f"the same picture in two classes: {pair}{_and_more(apart)}; one of the two is wrong")
    if twice:
        other, picture = twice[0]
        pair = f"{shown(picture.name)} is {shown(other.name)} again"
        said.append(f"given twice, and counted twice: {pair}{_and_more(twice)}; leave copies out")
    return said


def _and_more(found: Sequence[object]) -> str:
    return f", and {len(found) - 1} more" if len(found) > 1 else ""


def _rows(state: State, tasks: Sequence[Mapping[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [(task["name"], row) for task in tasks for row in of_json_lines(state.text(f"{task['folder']}/{PICTURES}"))]
