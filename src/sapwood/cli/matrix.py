"""``sapwood methods --matrix``: which parts go together, and why some do not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sapwood.cli.screen import print_json, table

# One small network of each sort; facts about sites and attention do not depend on the size.
_NETWORKS = {
    "ViT": "random:dinov2-tiny",
    "SAM": "random:sam-tiny",
    "MiT": "random:mit-tiny",
    "ResNet": "random:resnet-tiny",
}
_KINDS = {"classification": "pictures", "segmentation": "masks"}


def print_matrix(as_json: bool) -> None:
    """Adapters, objectives and heads against each other, then adapters and objectives against sorts of networks."""
    from sapwood.adapters import ADAPTERS
    from sapwood.backbones import plan_backbone
    from sapwood.heads import HEADS
    from sapwood.methods.legality import combinations, misfit, misfit_on
    from sapwood.objectives import OBJECTIVES

    planned = {sort: plan_backbone(name) for sort, name in _NETWORKS.items()}
    if as_json:
        networks = [
            {"part": part, "name": name, "network": sort, "reason": misfit_on(backbone, called=sort, **{part: name})}
            for part, names in (("adapter", ADAPTERS), ("objective", OBJECTIVES))
            for name in names
            for sort, backbone in planned.items()
        ]
        found = [combination._asdict() for combination in combinations()]
        print_json({"combinations": [_legal(one) for one in found], "networks": [_legal(one) for one in networks]})
        return
    kinds = {name: ", ".join(_KINDS[kind] for kind in sorted(OBJECTIVES[name].kinds)) for name in OBJECTIVES}
    reasons: list[str] = []
    print("Every adapter goes with every objective:\n")
    _print_grid("adapter", ADAPTERS, OBJECTIVES, lambda adapter, objective: None, reasons, yes=kinds)
    print("\nAn objective trains the heads of its kinds of task:\n")
    _print_grid("objective", OBJECTIVES, HEADS, misfit, reasons)
    print("\nWhat a network must have:\n")
    _print_grid(
        "adapter", ADAPTERS, planned, lambda name, sort: misfit_on(planned[sort], adapter=name, called=sort), reasons
    )
    print()
    _print_grid(
        "objective",
        OBJECTIVES,
        planned,
        lambda name, sort: misfit_on(planned[sort], objective=name, called=sort),
        reasons,
    )
    if reasons:
        print()
    for number, reason in enumerate(reasons, 1):
        print(f"{number}) {reason}")


def _legal(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "legal": entry["reason"] is None}


def _print_grid(
    what: str,
    names: Iterable[str],
    against: Iterable[str],
    reason_of: Callable[[str, str], str | None],
    reasons: list[str],
    yes: dict[str, str] | None = None,
) -> None:
    columns: Sequence[str] = list(against)
    rows = [[what, *columns]]
    for name in names:
        row = [name]
        for column in columns:
            reason = reason_of(name, column)
            if reason is None:
                row.append((yes or {}).get(column, "yes"))
                continue
            # One note for all pairs that fail alike: it speaks of "the objective" where the reason names it.
            note = reason.replace(f"{what} {name}", f"the {what}").replace(f"head {column}", "the head")
            if note not in reasons:
                reasons.append(note)
            row.append(f"no {reasons.index(note) + 1})")
        rows.append(row)
    print(table(rows))
