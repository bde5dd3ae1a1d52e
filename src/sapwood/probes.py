"""Which pictures were learned, and which a state keeps, by wish, to measure its classes on after every round."""

from __future__ import annotations

import io
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sapwood.data.pictures import Picture, Pictures
from sapwood.data.store import PictureStore
from sapwood.errors import ConfigError, DataError
from sapwood.state import State

if TYPE_CHECKING:
    from torch import Tensor

ROWS, PIXELS = "probe.jsonl", "probe.safetensors"
"""Of a round: hash and class of each of its probe pictures, and the pictures themselves."""


@dataclass(frozen=True)
class Probe:
    """A picture that is kept to measure on, and was never learned.

    Attributes:
        sha256: of the file it came from.
        label: its class by name.
        content: the picture as PNG at working size, without anything else that its file held.
    """

    sha256: str
    label: str
    content: bytes


@dataclass(frozen=True)
class Taken:
    """What becomes of a round's pictures where some are kept to measure on.

    Attributes:
        rest: the pictures to learn from.
        new: those that the state will keep from now on.
        again: how many it keeps already; they are not learned either.
    """

    rest: PictureStore
    new: PictureStore
    again: int = 0

    def remarks(self) -> list[str]:
        """What a person should know of it."""
        said = []
        if len(self.new):
            counts = Counter(self.new.pictures.labels)
            least, most = min(counts.values()), max(counts.values())
            each = f"{most}" if least == most else f"{least} to {most}"
            said.append(
                f"kept in the state to measure on, and not learned: {len(self.new)} pictures, {each} of each of "
                f"{len(counts)} classes; `sapwood probe STATE --remove` removes them"
            )
        if self.again:
            said.append(f"{self.again} of the pictures are kept to measure on already, and are not learned")
        return said


def learned_pictures(state: State) -> dict[str, tuple[str, int | None]]:
    """Round and class id of every picture that was learned, by its sha256; of masks the class is None."""
    found: dict[str, tuple[str, int | None]] = {}
    for task in state.version.record["tasks"]:
        for line in state.text(f"{task['folder']}/pictures.jsonl").splitlines():
            row = json.loads(line)
            found[row["sha256"]] = (task["name"], row.get("label"))
    return found


def wanted_probes(record: Mapping[str, Any], keep: int | None) -> int:
    """Pictures a class to keep: what is given, else what the last round kept.

    Raises:
        ConfigError: fewer than none, or the state draws masks.
    """
    if keep is not None and keep < 0:
        raise ConfigError(f"--keep-probe must be 0 or more pictures a class, got {keep}")
    if keep and record["kind"] == "segmentation":
        raise ConfigError("--keep-probe: only for states that name pictures; give masks to measure on with --test")
    return int(record.get("keep_probe", 0) if keep is None else keep)


def take_probes(store: PictureStore, count: int, state: State) -> Taken:
    """Set pictures of each class aside until the state keeps ``count`` of it, at most half of those given.

    Which ones follows from their bytes alone, so that the same pictures give the same choice. Pictures that come twice,
    or were learned before, are never chosen: they would measure too much.

    Raises:
        DataError: nothing is left to learn from.
    """
    if not count and not kept_counts(state.version.record):
        return Taken(store, store.subset(()))
    kept = probe_rows(state)
    there = Counter(label for _, label in kept)
    held = {sha256 for sha256, _ in kept}
    doubled = Counter(store.sha256)
    learned = learned_pictures(state) if count else {}
    candidates: dict[str, list[int]] = defaultdict(list)
    for index, (label, sha256) in enumerate(zip(store.pictures.labels, store.sha256, strict=True)):
        if label is not None and sha256 not in held and sha256 not in learned and doubled[sha256] == 1:
            candidates[label].append(index)
    new: list[int] = []
    for label, indices in candidates.items():
        room = min(max(0, count - there[label]), len(indices) // 2)
        new += sorted(indices, key=lambda index: store.sha256[index])[:room]
    new.sort()
    again = [index for index, sha256 in enumerate(store.sha256) if sha256 in held]
    rest = sorted(set(range(len(store))).difference(new, again))
    if not rest:
        raise DataError(
            f"all {len(store)} pictures are kept by {state.path} to measure on; give others to learn from, or let go "
            f"of them: sapwood probe {state.path} --remove"
        )
    return Taken(store.subset(rest), store.subset(new), len(again))


def encoded(store: PictureStore) -> list[Probe]:
    """Decoded pictures, as they are kept."""
    return [
        Probe(sha256, str(picture.label), _png(store[index]))
        for index, (picture, sha256) in enumerate(zip(store.pictures, store.sha256, strict=True))
    ]


def probe_files(
    probes: Sequence[Probe], classes: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """What is written of a round's probe pictures: ``ROWS``, and ``PIXELS``; ``classes`` are those of the record."""
    import torch

    ids = {entry["name"]: entry["id"] for entry in classes}
    rows = [{"sha256": probe.sha256, "label": ids[probe.label]} for probe in probes]
    contents = (torch.frombuffer(bytearray(probe.content), dtype=torch.uint8) for probe in probes)
    return rows, {f"{index:05d}": content for index, content in enumerate(contents)}


def probe_rows(state: State) -> list[tuple[str, str]]:
    """(sha256, class by the name of today) of all that is kept."""
    names = _names(state.version.record)
    rows = [row for folder in _folders(state.version.record) for row in _rows(state, folder)]
    return [(row["sha256"], names[row["label"]]) for row in rows if row["label"] in names]


def read_probes(state: State) -> list[Probe]:
    """All that is kept, in the order of the rounds."""
    names = _names(state.version.record)
    found = []
    for folder in _folders(state.version.record):
        pixels = state.tensors(f"{folder}/{PIXELS}")
        for index, row in enumerate(_rows(state, folder)):
            if row["label"] in names:
                content = pixels[f"{index:05d}"].numpy().tobytes()
                found.append(Probe(row["sha256"], names[row["label"]], content))
    return found


def as_pictures(probes: Sequence[Probe]) -> Pictures:
    """Labelled pictures to measure on."""
    return Pictures(Picture(f"probe {index}", probe.content, probe.label) for index, probe in enumerate(probes))


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
    """A round's probe pictures once a class (by id) is gone, or is a part of another one."""
    if into is not None:
        return [{**row, "label": into if row["label"] == gone else row["label"]} for row in rows], dict(pixels)
    left = [index for index, row in enumerate(rows) if row["label"] != gone]
    return [dict(rows[index]) for index in left], {
        f"{position:05d}": pixels[f"{index:05d}"] for position, index in enumerate(left)
    }


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def _names(record: Mapping[str, Any]) -> dict[int, str]:
    return {entry["id"]: entry["name"] for entry in record["classes"]}


def _folders(record: Mapping[str, Any]) -> list[str]:
    """Of the rounds that keep probe pictures."""
    return [task["folder"] for task in record["tasks"] if f"{task['folder']}/{PIXELS}" in record["files"]]


def _rows(state: State, folder: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in state.text(f"{folder}/{ROWS}").splitlines()]
