"""The checkpoint of a task that is being learned, and the plan it belongs to."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sapwood.cache import file_sha256
from sapwood.errors import StateError
from sapwood.state.files import (
    discard,
    make_folder,
    parse_tensors,
    put,
    settle,
    sync_folder,
    write_aside,
    writing,
)

if TYPE_CHECKING:
    from torch import Tensor

_PLAN = "plan.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d{6,})-([0-9a-f]{16})\.safetensors")
_ROWS = re.compile(r"rows-([a-z-]+)-(\d{9,})-([0-9a-f]{16})\.safetensors")


def base_of(tasks: Sequence[Mapping[str, Any]]) -> list[Any]:
    """What a round after these is learned on top of: measuring in between makes a new version, but no new base."""
    return [len(tasks), tasks[-1]["folder"] if tasks else None]


class TrainingFolder:
    """``<state>/training``: a plan (what is being learned, with which settings), its newest checkpoint, and rows.

    Used by the process that holds the state's ``writer()``. A checkpoint is one safetensors file whose header carries
    the JSON part and whose name carries its number and sha256, so that it appears in one step, whole. Rows are what a
    pass over pictures has computed so far, in files that each go on where the one before ends.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def plan(self) -> dict[str, Any] | None:
        """The plan that was begun and not cleared, or None.

        Raises:
            StateError: the plan is not readable JSON.
        """
        path = self.path / _PLAN
        try:
            plan = json.loads(path.read_bytes())
            if not isinstance(plan, dict):
                raise ValueError("no JSON object")
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:
            raise StateError(f"{path} is damaged ({error}); start the task again with --restart") from error
        except OSError as error:
            raise StateError(f"{path} cannot be read ({error.strerror}); make it readable for this user") from error
        return plan

    def half_learned(self, tasks: Sequence[Mapping[str, Any]]) -> str | None:
        """Name of the round that was begun after these rounds and not committed; None without one.

        What a kill right after a commit leaves behind is none: it was begun before the last of these rounds.
        """
        try:
            plan = self.plan()
        except StateError:
            return None
        return str(plan.get("task")) if plan is not None and plan.get("base") == base_of(tasks) else None

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Drop whatever was being trained and note the new plan (plain JSON values)."""
        text = json.dumps(dict(plan), ensure_ascii=False, allow_nan=False, indent=1)
        with writing(self.path):
            self.clear()
            make_folder(self.path)
            put(self.path / _PLAN, text)

    def save(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Write a checkpoint and, once it is safe, remove the one before.

        ``meta`` is JSON in which numbers may also be NaN or infinite (a loss may be).
        """
        header = {"meta": json.dumps(dict(meta))}
        with writing(self.path):
            make_folder(self.path)
            earlier = self._checkpoints()
            number = max((number for number, _ in earlier), default=0) + 1
            temporary = write_aside(self.path, tensors, header)
            name = f"checkpoint-{number:06d}-{file_sha256(temporary)[:16]}.safetensors"
            settle(temporary, self.path / name)
        for _, path in earlier:
            discard(path)
        self._discard_leftovers()

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors (on the CPU) and meta of the newest whole checkpoint, or None; damaged ones are passed over."""
        if not (self.path / _PLAN).exists():
            return None
        for _, path in reversed(self._checkpoints()):
            with suppress(OSError, StateError, ValueError, KeyError):
                match = _CHECKPOINT.fullmatch(path.name)
                data = path.read_bytes()
                if match is None or not hashlib.sha256(data).hexdigest().startswith(match[2]):
                    continue
                header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
                meta = json.loads(header["__metadata__"]["meta"])
                return parse_tensors(data, path), meta
        return None

    def keep_rows(self, what: str, first: int, rows: Tensor) -> None:
        """Keep the results [n, ...] of a pass (``what`` is its name, in words) for pictures ``first`` and after."""
        with writing(self.path):
            make_folder(self.path)
            temporary = write_aside(self.path, {"rows": rows})
            name = f"rows-{what.replace(' ', '-')}-{first:09d}-{file_sha256(temporary)[:16]}.safetensors"
            settle(temporary, self.path / name)

    def kept_rows(self, what: str) -> Tensor | None:
        """What a pass has kept, from its first picture on without a gap, or None; damaged files are passed over."""
        import torch

        found: list[Tensor] = []
        for first, digest, path in self._row_files(what.replace(" ", "-")):
            if first != sum(map(len, found)):
                continue
            with suppress(OSError, StateError, ValueError, KeyError):
                data = path.read_bytes()
                if hashlib.sha256(data).hexdigest().startswith(digest):
                    found.append(parse_tensors(data, path)["rows"])
        return torch.cat(found) if found else None

    def clear(self) -> dict[str, Any] | None:
        """Remove plan, checkpoints and rows (the plan first: a checkpoint without a plan is nothing).

        Returns:
            The plan; None if there was none, or none that could be read.
        """
        plan = None
        if not self.path.is_dir():
            return plan
        with suppress(StateError):
            plan = self.plan()
        with writing(self.path):
            (self.path / _PLAN).unlink(missing_ok=True)
            sync_folder(self.path)
        for _, path in self._checkpoints():
            discard(path)
        for _, _, path in self._row_files():
            discard(path)
        self._discard_leftovers()
        with suppress(OSError):
            self.path.rmdir()
        return plan

    def _checkpoints(self) -> list[tuple[int, Path]]:
        """Finished checkpoints, oldest first."""
        if not self.path.is_dir():
            return []
        found = [(match, path) for path in self.path.iterdir() if (match := _CHECKPOINT.fullmatch(path.name))]
        return sorted((int(match[1]), path) for match, path in found)

    def _row_files(self, what: str | None = None) -> list[tuple[int, str, Path]]:
        """First picture, digest and path of the files of a pass, or of all, in order."""
        if not self.path.is_dir():
            return []
        found = [(match, path) for path in self.path.iterdir() if (match := _ROWS.fullmatch(path.name))]
        return sorted((int(match[2]), match[3], path) for match, path in found if what in (None, match[1]))

    def _discard_leftovers(self) -> None:
        """Remove what killed writers left, under whatever name: whatever is no plan, checkpoint or rows."""
        if not self.path.is_dir():
            return
        for path in self.path.iterdir():
            if path.name != _PLAN and not any(known.fullmatch(path.name) for known in (_CHECKPOINT, _ROWS)):
                discard(path)
