"""What a method is: parts by name, and settings that differ from theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sapwood.adapters import ADAPTERS
from sapwood.heads import HEADS
from sapwood.objectives import OBJECTIVES

Settings = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Method:
    """A recipe.

    Attributes:
        name: on the command line.
        adapter, objective, head: registry names of the parts.
        settings: per part, what differs from the parts' defaults.
        title: one line of what it does.
        reference: paper, or empty for compositions.
        all_data: needs the pictures of all rounds at once; an upper bound, only in benchmarks.
        reconstructed: the paper leaves choices open that this implementation had to make.
    """

    name: str
    adapter: str
    objective: str
    head: str
    title: str
    reference: str = ""
    settings: Settings = field(default_factory=dict)
    all_data: bool = False
    reconstructed: bool = False

    @property
    def kind(self) -> str:
        """The kind of task that its head is made for."""
        return HEADS[self.head].kind

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of task that it can learn, its own first: a plain gradient head has a twin of the other kind."""
        plain = self.head in TWINS.values() and not self.settings.get("head")
        return tuple(
            kind
            for kind in sorted(TWINS, key=lambda kind: kind != self.kind)
            if kind in OBJECTIVES[self.objective].kinds and (kind == self.kind or plain)
        )


TWINS = {"classification": "linear", "segmentation": "dense"}
# A mask holds thousands of targets a picture: fewer pictures a step, more passes over them, a higher rate.
KIND_SETTINGS: Mapping[str, Settings] = {
    "classification": {},
    "segmentation": {"training": {"epochs": 10, "batch_size": 8, "lr": 3e-3, "head_lr": None}},
}


def merged(one: Settings, other: Settings) -> Settings:
    """Settings of both, those of ``other`` over those of ``one``."""
    return {part: {**one.get(part, {}), **other.get(part, {})} for part in (*one, *other)}


def for_kind(settings: Settings, kind: str, adapter: str) -> Settings:
    """Settings of the other kind of task, with what this kind wants instead."""
    wanted = KIND_SETTINGS[kind]
    if ADAPTERS[adapter].trains_backbone and "training" in wanted:  # low-rank rates would ruin all weights
        wanted = {"training": {key: value for key, value in wanted["training"].items() if not key.endswith("lr")}}
    return merged(settings, wanted)
