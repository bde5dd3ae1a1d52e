"""``sapwood methods``, ``backbones`` and ``benchmarks``: what there is to choose from."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sapwood.cli.options import AsJson
from sapwood.cli.screen import print_json, size, table

if TYPE_CHECKING:
    from sapwood.methods import Method

_CLASSES = 10
# DINOv2 ViT-S/14 with its table of 37 x 37 positions.
_WIDTH, _DEPTH, _PARAMETERS = 384, 12, 22_056_576


def methods(as_json: AsJson = False) -> None:
    """List the methods and what they store."""
    from sapwood.methods import METHODS

    entries = [_method(METHODS[name]) for name in METHODS]
    if as_json:
        print_json({"methods": entries})
        return
    rows = [["method", "adapter", "objective", "head", "merges", "stored", "what it does"]]
    rows += [
        [
            entry["name"],
            entry["adapter"],
            entry["objective"],
            entry["head"],
            "yes" if entry["merges"] else "no",
            size(entry["bytes"]),
            entry["title"] + (f" [{entry['reference']}]" if entry["reference"] else ""),
        ]
        for entry in entries
    ]
    print(table(rows, right=[5]))
    print(f"\nstored: bytes a round keeps for a ViT-S with {_CLASSES} classes (trained tensors and kept statistics).")
    print("Every adapter goes with every objective and head: --method ADAPTER+OBJECTIVE --head HEAD\n")
    rows = [["part", "name", "what it is", "what grows with rounds"], *_parts()]
    print(table(rows))


def backbones(as_json: AsJson = False) -> None:
    """List the backbones."""
    from sapwood.backbones import known_backbones

    entries = [
        {"name": name, "family": known.family, "licence": known.licence, "source": known.source}
        for name, known in known_backbones().items()
    ]
    _print("backbones", entries, as_json)
    if not as_json:
        print("\nOr a Hugging Face id (owner/name), a local folder, or timm:NAME.")


def benchmarks(as_json: AsJson = False) -> None:
    """List the benchmarks."""
    from sapwood.data.benchmarks import BENCHMARKS

    known = [BENCHMARKS[name] for name in BENCHMARKS]
    entries = [{"name": each.name, "description": each.description, "where": each.where} for each in known]
    _print("benchmarks", entries, as_json)


def _print(what: str, entries: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json({what: entries})
    else:
        print(table([list(entries[0]), *(list(entry.values()) for entry in entries)]))


def _method(method: Method) -> dict[str, Any]:
    from sapwood.adapters import ADAPTERS
    from sapwood.heads import HEADS
    from sapwood.objectives import OBJECTIVES

    adapter = ADAPTERS[method.adapter]
    return {
        "name": method.name,
        "title": method.title,
        "reference": method.reference,
        "adapter": method.adapter,
        "objective": method.objective,
        "head": method.head,
        "settings": {part: dict(values) for part, values in method.settings.items()},
        "growth": {
            "adapter": adapter.growth,
            "objective": OBJECTIVES[method.objective].growth,
            "head": HEADS[method.head].growth,
        },
        "merges": adapter.mergeable,
        "stores_backbone": adapter.trains_backbone,
        "upper_bound": method.all_data,
        "bytes": _declared_bytes(method),
    }


def _parts() -> list[list[str]]:
    from sapwood.adapters import ADAPTERS
    from sapwood.heads import HEADS
    from sapwood.objectives import OBJECTIVES

    rows = [["adapter", name, ADAPTERS[name].summary, ADAPTERS[name].growth] for name in ADAPTERS]
    rows += [["objective", name, OBJECTIVES[name].summary, OBJECTIVES[name].growth] for name in OBJECTIVES]
    return rows + [["head", name, HEADS[name].description, HEADS[name].growth] for name in HEADS]


def _declared_bytes(method: Method) -> int:
    """Bytes that the first round of ten classes keeps on a ViT-S: what its parts give for the state, unfilled."""
    import torch

    from sapwood.adapters import ADAPTERS
    from sapwood.assembly import merge_settings
    from sapwood.backbones.base import BackboneInfo, Site
    from sapwood.costs import stored_bytes
    from sapwood.heads import HEADS
    from sapwood.objectives import OBJECTIVES
    from sapwood.settings import build
    from sapwood.task import Task

    settings = merge_settings(method)
    info = BackboneInfo("", "dinov2", "", "", "", _WIDTH, 14, _DEPTH, 6, 1, 224, (0, 0, 0), (1, 1, 1))
    sites = [
        Site(f"block.{block}.{part}", "linear", inputs * _WIDTH, outputs * _WIDTH, "", "")
        for block in range(_DEPTH)
        for part, inputs, outputs in (("q", 1, 1), ("k", 1, 1), ("v", 1, 1), ("o", 1, 1), ("fc1", 1, 4), ("fc2", 4, 1))
    ]
    adapter_type, head_type, objective_type = ADAPTERS[method.adapter], HEADS[method.head], OBJECTIVES[method.objective]
    adapter = adapter_type(build(adapter_type.Config, settings["adapter"], "adapter"), sites, info)
    head = head_type(build(head_type.Config, settings["head"], "head"), _WIDTH)
    head.grow(_CLASSES, torch.Generator())
    objective = objective_type(build(objective_type.Config, settings["objective"], "objective"))
    trained = {f"adapter.{name}": parameter for name, parameter in adapter.named_parameters()}
    trained |= {f"head.{name}": parameter for name, parameter in head.named_parameters()}

    def forward(batch: Any) -> torch.Tensor:
        touched = torch.stack([parameter.sum() for parameter in trained.values()]).sum()
        return touched * torch.ones(1, _CLASSES)

    classes = tuple(range(_CLASSES))
    picture = SimpleNamespace(targets=torch.zeros(1, dtype=torch.int64))
    objective.after_task(trained, lambda _: [picture], forward, Task(0, "", classes, classes, _CLASSES, 0))
    backbone = 4 * _PARAMETERS if adapter.trains_backbone else 0
    return (
        backbone
        + stored_bytes({"adapter": adapter.state()[0], "objective": objective.state()[0]})
        + head.declared_bytes()
    )
