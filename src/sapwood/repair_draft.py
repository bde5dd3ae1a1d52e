"""The next version of a state while it is put together: its record, and the files of rounds that change."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sapwood.assembly import read_part
from sapwood.costs import stored_bytes
from sapwood.probes import PIXELS, ROWS
from sapwood.record import FEATURES, PICTURES, as_json_lines, of_json_lines
from sapwood.state import State, Version
from sapwood.task import Snapshot


class Draft:
    """A change of rounds that were learned.

    Versions are immutable: a round one of whose files changes gets a new folder with all of its files, and the record
    of the new version names that folder. Whoever opens the state need not know that it was repaired.

    Attributes:
        record: of the next version; its entries may be changed.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        self.record: dict[str, Any] = copy.deepcopy(dict(state.version.record))
        self._files: dict[int, dict[str, Mapping[str, Tensor] | str | None]] = {}

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """Entries of the rounds."""
        return self.record["tasks"]

    def rows(self, index: int) -> list[dict[str, Any]]:
        """What a round remembers of its pictures."""
        changed = self._files.get(index, {}).get(PICTURES)
        text = changed if isinstance(changed, str) else self.state.text(f"{self.tasks[index]['folder']}/{PICTURES}")
        return of_json_lines(text)

    def features(self, index: int) -> Tensor | None:
        """Features [n, d] of a round's pictures, one for each of its rows; None if not kept."""
        changed = self._files.get(index, {}).get(FEATURES)
        if isinstance(changed, Mapping):
            return changed["features"]
        name = f"{self.tasks[index]['folder']}/{FEATURES}"
        return self.state.tensors(name)["features"] if name in self.record["files"] else None

    def probes(self, index: int) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        """Rows and contents of the pictures that a round keeps to measure on, as they lie in the state."""
        folder = self.tasks[index]["folder"]
        rows = of_json_lines(self.state.text(f"{folder}/{ROWS}"))
        return rows, self.state.tensors(f"{folder}/{PIXELS}")

    def part(self, index: int, part: str) -> Snapshot:
        """What a round left behind for a part, as it lies in the state."""
        return read_part(self.state, self.tasks[index], part)

    def put(self, index: int, name: str, content: Mapping[str, Tensor] | str | None) -> None:
        """Give a round another file of this name, or with None take it away."""
        self._files.setdefault(index, {})[name] = content

    def put_rows(self, index: int, rows: list[dict[str, Any]], features: Tensor | None) -> None:
        """Give a round other pictures, and their features if they are kept."""
        self.put(index, PICTURES, as_json_lines(rows))
        if features is not None:
            self.put(index, FEATURES, {"features": features})

    def put_part(self, index: int, part: str, snapshot: Snapshot | None) -> None:
        """Give a round another snapshot of a part, or with None leave nothing of it."""
        tensors, meta = snapshot if snapshot is not None else ({}, {})
        self.put(index, f"{part}.safetensors", tensors or None)
        self.tasks[index]["parts"][part] = None if snapshot is None else {"stored": bool(tensors), "meta": meta}

    def commit(self, note: str) -> Version:
        """Make it the current version. The caller holds ``state.writer()``."""
        kept = dict(self.record["files"])
        files: dict[str, Any] = {}
        for index, changed in sorted(self._files.items()):
            task = self.tasks[index]
            prefix = f"{task['folder']}/"
            own = [name.removeprefix(prefix) for name in kept if name.startswith(prefix)]
            same = [name for name in own if name not in changed]
            new = {name: content for name, content in changed.items() if content is not None}
            if not new:  # what stays, stays where it is
                kept = {name: entry for name, entry in kept.items() if name.removeprefix(prefix) not in changed}
                continue
            contents = new | {name: self._read(prefix + name) for name in same}
            kept = {name: entry for name, entry in kept.items() if not name.startswith(prefix)}
            task["folder"] = self.state.free_task_folder(index + 1, task["name"])
            tensors = {name: content for name, content in contents.items() if not isinstance(content, str)}
            task["declared_bytes"] = stored_bytes(tensors)
            files |= {f"{task['folder']}/{name}": content for name, content in contents.items()}
        self.record["files"] = list(kept)
        return self.state.commit(self.record, files, note)

    def _read(self, name: str) -> Mapping[str, Tensor] | str:
        return self.state.tensors(name) if name.endswith(".safetensors") else self.state.text(name)
