"""The routing matrices of a state that C-LoRA learned, for its report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from sapwood.adapters.routed import Route, Routed, RoutedConfig
from sapwood.assembly import read_part
from sapwood.backbones.base import BackboneInfo, Site
from sapwood.functional.routes import route_overlap
from sapwood.report.content import Routes, SiteRoute
from sapwood.settings import build
from sapwood.state import State
from sapwood.task import Snapshot


def read_routes(state: State) -> Routes | None:
    """The routes after the last round, and how those of successive rounds overlap.

    Each round's adapter file is read; the backbone is not needed.

    Returns:
        None where another adapter learned, nothing was learned yet, or rounds did not note their sites.

    Raises:
        StateError: a file is missing or damaged.
    """
    record = state.version.record
    if record["parts"]["adapter"] != "routed" or not record["tasks"]:
        return None
    config = build(RoutedConfig, record["settings"]["adapter"], "adapter")
    info = BackboneInfo(**record["backbone"])
    overlaps: list[tuple[float, ...] | None] = []
    before: Tensor | None = None
    found: dict[str, Route] = {}
    for task in record["tasks"]:
        snapshot = read_part(state, task, "adapter")
        if "sites" not in snapshot[1]:
            return None
        old = snapshot[0]["old"]
        if before is not None and old.equal(before):  # the round trained the head alone
            overlaps.append(None)
            continue
        adapter = _adapter(config, snapshot, info)
        found = adapter.routes()
        # From the older round's own file: in old - delta, rounding turns directions of nearly equal singular values.
        overlaps.append(None if before is None else _overlaps(adapter, before, found))
        before = old
    sites = [SiteRoute(name, route.old.numpy(), route.delta.numpy()) for name, route in found.items()]
    return Routes(tuple(sites), tuple(overlaps))


def _overlaps(adapter: Routed, before: Tensor, found: Mapping[str, Route]) -> tuple[float, ...]:
    pairs = zip(before, found.values(), strict=True)
    return tuple(min(1.0, route_overlap(adapter.protected(old), route.delta)) for old, route in pairs)


def _adapter(config: RoutedConfig, snapshot: Snapshot, info: BackboneInfo) -> Routed:
    """The adapter as a round left it, on sites of the sizes that its factors have."""
    tensors, meta = snapshot
    sites = [_site(name, tensors) for name in meta["sites"]]
    parts = tuple(dict.fromkeys(site.part for site in sites))
    adapter = Routed(replace(config, targets=parts, blocks="all"), sites, info)  # those it has were chosen already
    adapter.load([snapshot])
    return adapter


def _site(name: str, tensors: dict[str, Tensor]) -> Site:
    key = name.replace(".", "_")
    return Site(name, "linear", tensors[f"down.{key}"].shape[1], tensors[f"up.{key}"].shape[0], "", "")
