"""Classes by name: listed, and called otherwise. Nothing here needs a network, and a listing takes no second."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from sapwood.errors import ConfigError
from sapwood.record import FEATURES, PICTURES, of_json_lines
from sapwood.repair_record import known_class, renamed
from sapwood.state import State, Version


@dataclass(frozen=True)
class Repair:
    """A change that was made.

    Attributes:
        version: the new one.
        remarks: what a person should know of it: above all what may still be there.
    """

    version: Version
    remarks: tuple[str, ...]


def list_classes(state: State) -> list[dict[str, Any]]:
    """``id``, ``name``, ``round`` (that brought it) and ``pictures`` of every class; None where there is no such thing.

    Of masks also ``value``, as which ``predict`` draws it; which classes a picture shows is not remembered then.
    """
    record = state.version.record
    counts: Counter[int] = Counter()
    if record["kind"] == "classification":
        texts = (state.text(f"{task['folder']}/{PICTURES}") for task in record["tasks"])
        counts.update(row["label"] for text in texts for row in of_json_lines(text))
    brought = {name: task["name"] for task in record["tasks"] for name in task["classes"]}
    masks = record["kind"] == "segmentation"
    return [
        {
            **entry,
            **({"value": value} if masks else {}),
            "round": brought.get(entry["name"]),
            "pictures": None if masks else counts[entry["id"]],
        }
        for value, entry in enumerate(record["classes"])
    ]


def kept_bytes(state: State) -> int:
    """Bytes of the features that the current version keeps so that its pictures can be taken out of the sums again."""
    return sum(entry["bytes"] for name, entry in state.version.record["files"].items() if name.endswith(f"/{FEATURES}"))


def rename_class(state: State, old: str, new: str) -> Repair:
    """Give a class another name. Its id stays.

    Raises:
        UsageError: no such class, the name is taken or not allowed, or a round is half learned.
    """
    with state.writer():
        old = known_class(state.version.record, old)
        record = renamed(state.version.record, old, new)
        if (half := state.training.half_learned(state.version.record["tasks"])) is not None:
            raise ConfigError(
                f"{state.path}: round {half!r} is half learned with the old name; "
                "repeat its `learn` to finish it first, or drop it with `undo` or `learn --restart`"
            )
        version = state.commit(record, {}, f"rename {old} -> {new}")
    return Repair(version, (f"pictures to learn or to measure on must be of class {new!r} from now on",))
