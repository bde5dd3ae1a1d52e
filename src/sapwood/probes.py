"""Which pictures a state keeps, by wish, to measure its classes on after every round."""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from sapwood.errors import ConfigError, DataError
from sapwood.learned import learned_files, learned_pictures
from sapwood.record import of_json_lines
from sapwood.state import State
from sapwood.wording import counted

if TYPE_CHECKING:
    from torch import Tensor

ROWS, PIXELS = "probe.jsonl", "probe.safetensors"
"""Of a round: hash and class of each of its probe pictures, and the pictures themselves."""


class Shown(NamedTuple):
    """What a picture is known by (sha256 of the file, without its mask), and the names of the classes it shows."""

    sha256: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Probe:
    """A picture that is kept to measure on, and was never learned.

    Attributes:
        sha256: of the file it came from, without its mask.
        classes: that it shows, by name; without a mask one.
        content: the picture as PNG at working size, without anything else that its file held.
        mask: an index PNG of the same size: 0 is background, 255 ignored, v > 0 the v-th of ``annotated``.
        annotated: the classes that the masks of its round label; None for one that is gone.
    """

    sha256: str
    classes: tuple[str, ...]
    content: bytes
    mask: bytes | None = None
    annotated: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class Taken:
    """What becomes of a round's pictures where some are kept to measure on.

    Attributes:
        rest: the pictures to learn from.
        new: those that the state will keep from now on.
        shown: how many of these show each class.
        again: how many it keeps already; they are not learned either.
        apart: of those, pictures that it keeps under another class, ``(name, class now, class that is kept)``.
    """

    rest: Any
    new: Any
    shown: Mapping[str, int]
    again: int = 0
    apart: tuple[tuple[str, str, str], ...] = ()

    def remarks(self) -> list[str]:
        """What a person should know of it."""
        said = []
        if len(self.new):
            least, most = min(self.shown.values()), max(self.shown.values())
            each = f"{most}" if least == most else f"{least} to {most}"
            classes = counted(len(self.shown), "class", "classes")
            said.append(
                f"kept in the state to measure on, and not learned: {counted(len(self.new), 'picture')}, {each} of "
                f"each of {classes}; `sapwood probe STATE --remove` removes them"
            )
        if self.again:
            said.append(f"{self.again} of the pictures are kept to measure on already, and are not learned")
        if self.apart:
            name, now, kept = self.apart[0]
            more = f", and {len(self.apart) - 1} more" if len(self.apart) > 1 else ""
            said.append(
                f"kept to measure on as another class: {name} as {kept!r}, now {now!r}{more}; if the kept one is "
                "wrong, `sapwood probe STATE --remove` lets go of all that is kept"
            )
        return said


def wanted_probes(record: Mapping[str, Any], keep: int | None) -> int:
    """Pictures a class to keep: what is given, else what the last round kept.

    Raises:
        ConfigError: fewer than none.
    """
    if keep is not None and keep < 0:
        raise ConfigError(f"--keep-probe must be 0 or more pictures a class, got {keep}")
    return int(record.get("keep_probe", 0) if keep is None else keep)


def take_probes(store: Any, shown: Sequence[Shown], count: int, state: State) -> Taken:
    """Set pictures of each class aside until the state keeps ``count`` of it, at most half of those given.

    Which ones follows from their bytes alone, so that the same pictures give the same choice. Pictures that come twice,
    or were learned before, are never chosen: they would measure too much. A picture that shows several classes counts
    for each of them, and is chosen only if none of them loses more than half.

    Args:
        store: the pictures that were given.
        shown: what each of them shows.
        count: pictures of a class to keep in all.
        state: that keeps them.

    Raises:
        DataError: nothing is left to learn from, of all classes or of a new one.
    """
    if not count and not kept_counts(state.version.record):
        return Taken(store, store.subset(()), {})
    kept = probe_rows(state)
    held = {each.sha256 for each in kept}
    there = Counter(name for each in kept for name in each.classes)
    doubled = Counter(each.sha256 for each in shown)
    learned = learned_files(learned_pictures(state)) if count else set()
    candidates: dict[str, list[int]] = defaultdict(list)
    for index, each in enumerate(shown):
        if each.sha256 not in held | learned and doubled[each.sha256] == 1:
            for name in each.classes:
                candidates[name].append(index)
    new: set[int] = set()
    taken: Counter[str] = Counter()
    for name in sorted(candidates, key=lambda name: (len(candidates[name]), name)):
        for index in sorted(set(candidates[name]) - new, key=lambda index: shown[index].sha256):
            also = shown[index].classes
            if there[name] + taken[name] < count and all(2 * taken[c] + 2 <= len(candidates[c]) for c in also):
                new.add(index)
                taken.update(also)
    again = {index for index, each in enumerate(shown) if each.sha256 in held}
    apart: tuple[tuple[str, str, str], ...] = ()
    if state.version.record["kind"] == "classification":  # masks may label other classes every time
        told = {each.sha256: each.classes for each in kept}
        others = [index for index in sorted(again) if shown[index].classes != told[shown[index].sha256]]
        apart = tuple((store.pictures[n].name, shown[n].classes[0], told[shown[n].sha256][0]) for n in others)
    rest = [index for index in range(len(shown)) if index not in new | again]
    _check_rest(state, shown, rest)
    return Taken(store.subset(rest), store.subset(sorted(new)), taken, len(again), apart)


def _check_rest(state: State, shown: Sequence[Shown], rest: Sequence[int]) -> None:
    """Raise a DataError if nothing is left to learn from, or nothing of a new class."""
    known = _names(state.version.record).values()
    lost = {name for each in shown for name in each.classes}.difference(
        known, *(shown[index].classes for index in rest)
    )
    if lost or not rest:
        what = f"all pictures of the new class {min(lost)!r}" if lost else f"all {len(shown)} pictures"
        raise DataError(
            f"{what} are kept by {state.path} to measure on; give others to learn from, or let go of them: "
            f"sapwood probe {state.path} --remove"
        )


def probe_files(
    probes: Sequence[Probe], classes: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """What is written of a round's probe pictures: ``ROWS``, and ``PIXELS``; ``classes`` are those of the record."""
    import torch

    def packed(content: bytes) -> Tensor:
        return torch.frombuffer(bytearray(content), dtype=torch.uint8)

    ids = {entry["name"]: entry["id"] for entry in classes}
    rows: list[dict[str, Any]] = []
    pixels: dict[str, Tensor] = {}
    for index, probe in enumerate(probes):
        shows = [ids[name] for name in probe.classes]
        pixels[f"{index:05d}"] = packed(probe.content)
        if probe.mask is None:
            rows.append({"sha256": probe.sha256, "label": shows[0]})
        else:
            pixels[f"{index:05d}.mask"] = packed(probe.mask)
            annotated = [ids[name] for name in probe.annotated if name is not None]
            rows.append({"sha256": probe.sha256, "shows": shows, "annotated": annotated})
    return rows, pixels


def probe_rows(state: State) -> list[Shown]:
    """What all that is kept is known by, and shows, by the names of today."""
    names = _names(state.version.record)
    rows = (row for folder in _folders(state.version.record) for row in _rows(state, folder))
    found = (Shown(row["sha256"], tuple(names[label] for label in _shows(row) if label in names)) for row in rows)
    return [each for each in found if each.classes]


def read_probes(state: State) -> list[Probe]:
    """All that is kept, in the order of the rounds."""
    names = _names(state.version.record)
    found = []
    for folder in _folders(state.version.record):
        pixels = {name: content.numpy().tobytes() for name, content in state.tensors(f"{folder}/{PIXELS}").items()}
        for index, row in enumerate(_rows(state, folder)):
            classes = tuple(names[label] for label in _shows(row) if label in names)
            annotated = tuple(names.get(label) for label in row.get("annotated", ()))
            content, mask = pixels[f"{index:05d}"], pixels.get(f"{index:05d}.mask")
            if classes:
                found.append(Probe(row["sha256"], classes, content, mask, annotated))
    return found


def kept_counts(record: Mapping[str, Any]) -> int:
    """Probe pictures that a version keeps."""
    there = set(_folders(record))
    return sum(task.get("probe_images", 0) for task in record["tasks"] if task["folder"] in there)


def kept_bytes(record: Mapping[str, Any]) -> int:
    """Bytes of the probe pictures that a version keeps."""
    return sum(entry["bytes"] for name, entry in record["files"].items() if name.endswith((f"/{PIXELS}", f"/{ROWS}")))


def without_probes(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without any probe picture; later rounds keep none either, and the cells stay as they were measured."""
    files = {name: entry for name, entry in record["files"].items() if not name.endswith((f"/{PIXELS}", f"/{ROWS}"))}
    tasks = [{key: value for key, value in task.items() if key != "probe_images"} for task in record["tasks"]]
    return {**record, "files": files, "tasks": tasks, "keep_probe": 0}


def remove_probes(state: State) -> int:
    """Commit a version that keeps no probe pictures; gives how many went.

    Raises:
        ConfigError: it keeps none as it is.
    """
    with state.writer():
        record = state.version.record
        count = kept_counts(record)
        if not count:
            raise ConfigError(f"{state.path} keeps no pictures to measure on; `learn --keep-probe N` keeps some")
        state.commit(without_probes(record), {}, f"{count} probe pictures removed")
    return count


def other_probes(
    rows: Sequence[Mapping[str, Any]], pixels: Mapping[str, Tensor], gone: int, into: int | None
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """A round's probe pictures once a class (by id) is gone, or is a part of another one.

    What shows a class that is gone goes too, whatever else it shows.
    """
    if into is not None:
        return [{**row, "label": into if row["label"] == gone else row["label"]} for row in rows], dict(pixels)
    left = [index for index, row in enumerate(rows) if gone not in _shows(row)]
    return [dict(rows[index]) for index in left], {
        f"{position:05d}{part}": pixels[f"{index:05d}{part}"]
        for position, index in enumerate(left)
        for part in ("", ".mask")
        if f"{index:05d}{part}" in pixels
    }


def as_png(pixels: np.ndarray) -> bytes:
    """A picture uint8 [H, W, 3] as it is kept."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def _names(record: Mapping[str, Any]) -> dict[int, str]:
    return {entry["id"]: entry["name"] for entry in record["classes"]}


def _folders(record: Mapping[str, Any]) -> list[str]:
    """Of the rounds that keep probe pictures."""
    return [task["folder"] for task in record["tasks"] if f"{task['folder']}/{PIXELS}" in record["files"]]


def _rows(state: State, folder: str) -> list[dict[str, Any]]:
    return of_json_lines(state.text(f"{folder}/{ROWS}"))


def _shows(row: Mapping[str, Any]) -> list[int]:
    """Ids of the classes that a kept picture shows."""
    return row["shows"] if "shows" in row else [row["label"]]
