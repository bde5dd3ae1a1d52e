"""Which parts go together, and why some do not."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from sapwood.adapters import ADAPTERS
from sapwood.backbones.base import Backbone
from sapwood.errors import ConfigError
from sapwood.heads import HEADS
from sapwood.objectives import OBJECTIVES


class Combination(NamedTuple):
    """Three parts by name, and why they cannot form a method (None if they can)."""

    adapter: str
    objective: str
    head: str
    reason: str | None


def combinations() -> Iterator[Combination]:
    """Every adapter with every objective and every head."""
    for adapter, objective, head in itertools.product(ADAPTERS, OBJECTIVES, HEADS):
        yield Combination(adapter, objective, head, misfit(objective, head))


def misfit(objective: str, head: str) -> str | None:
    """Why an objective cannot train a head; None if it can. Adapters go with all of them.

    >>> misfit("mib", "dense")
    >>> misfit("mib", "ridge")
    'objective mib is for segmentation, head ridge for classification'
    """
    kinds, kind = OBJECTIVES[objective].kinds, HEADS[head].kind
    return (
        None if kind in kinds else f"objective {objective} is for {' and '.join(sorted(kinds))}, head {head} for {kind}"
    )


def misfit_on(
    backbone: Backbone, *, adapter: str | None = None, objective: str | None = None, called: str | None = None
) -> str | None:
    """Why a backbone cannot carry an adapter or show an objective what it needs; None if it can.

    ``called`` stands for the backbone's name in the answer.
    """
    name = called or backbone.info.name
    if adapter is not None:
        served = ADAPTERS[adapter].site_kinds
        found = {site.kind for site in backbone.sites}
        if not found & served:
            fitting = ", ".join(each for each in ADAPTERS if found & ADAPTERS[each].site_kinds)
            return (
                f"adapter {adapter} changes {_layers(served)} layers, {name} has {_layers(found)} ones; take {fitting}"
            )
    if objective is not None and "attention" in OBJECTIVES[objective].needs and not backbone.attention_blocks():
        return f"objective {objective} compares attention maps, and {name} shows none"
    return None


def check_head(objective: str, head: str, settings: Mapping[str, Any]) -> None:
    """Refuse settings of a head that the objective cannot train.

    Raises:
        ConfigError: the head's channels mean something else than the objective takes them for.
    """
    if HEADS[head].kind != "segmentation":
        return
    wanted = {"background": "class", **OBJECTIVES[objective].head}
    for key, value in wanted.items():
        if settings.get(key, value) != value:
            raise ConfigError(
                f"objective {objective} works with head.{key}={value}, not with head.{key}={settings[key]}; "
                f"leave head.{key} out"
            )


def _layers(kinds: Collection[str]) -> str:
    return " and ".join({"linear": "linear", "conv": "convolutional"}[kind] for kind in sorted(kinds, reverse=True))
