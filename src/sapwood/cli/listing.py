"""``sapwood methods``, ``backbones`` and ``benchmarks``: what there is to choose from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sapwood.cli.matrix import print_matrix
from sapwood.cli.options import AsJson
from sapwood.cli.screen import print_json, size, table

if TYPE_CHECKING:
    from sapwood.methods import Method

_CLASSES = 10
_SHOWN = {"classification": "pictures", "segmentation": "masks"}


def methods(
    as_json: AsJson = False,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Which adapters, objectives, heads and networks go together, and why not.")
    ] = False,
) -> None:
    """List the methods and what they store."""
    from sapwood.methods import METHODS

    if matrix:
        print_matrix(as_json)
        return
    entries = [_method(METHODS[name]) for name in METHODS]
    if as_json:
        print_json({"methods": entries})
        return
    rows = [["method", "adapter", "objective", "head", "learns", "merges", "stored", "grows", "what it does"]]
    rows += [
        [
            entry["name"] + ("†" if entry["reconstructed"] else ""),
            entry["adapter"],
            entry["objective"],
            entry["head"],
            " ".join(_SHOWN[kind] for kind in entry["kinds"]),
            "yes" if entry["merges"] else "no",
            size(entry["bytes"]),
            "yes" if entry["keeps_rounds"] else "no",
            entry["title"] + (f" [{entry['reference']}]" if entry["reference"] else ""),
        ]
        for entry in entries
    ]
    print(table(rows, right=[6]))
    print(f"\nstored: bytes a round keeps for a ViT-S with {_CLASSES} classes (trained tensors and kept statistics).")
    print("grows: whether every round's adapter has to be kept to go on; a class adds its rows to any head.")
    print("†: the paper leaves choices open; those made here are named in the adapter's docstring and are settings.")
    print("Parts go together freely (see --matrix): --method ADAPTER+OBJECTIVE --head HEAD; a recipe may stand")
    print("for the adapter, and +slca, +ridge or +ridge-6 (on the last six blocks) for a head with statistics:")
    print("c-lora+lwf, inflora+ridge\n")
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
    from sapwood.data.benchmarks import BENCHMARKS, OWN

    known = [BENCHMARKS[name] for name in BENCHMARKS]
    entries = [{"name": each.name, "description": each.description, "where": each.where} for each in known]
    _print("benchmarks", entries, as_json)
    if not as_json:
        print(f"\nOr {OWN}: a folder of your own, of pictures by class or with masks, split into so many tasks.")


def _print(what: str, entries: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json({what: entries})
    else:
        print(table([list(entries[0]), *(list(entry.values()) for entry in entries)]))


def _method(method: Method) -> dict[str, Any]:
    from sapwood.adapters import ADAPTERS
    from sapwood.costs import declared_bytes, example_adapter
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
        "keeps_rounds": example_adapter(method).history == "all",
        "merges": adapter.mergeable,
        "stores_backbone": adapter.trains_backbone,
        "upper_bound": method.all_data,
        "kinds": list(method.kinds),
        "reconstructed": method.reconstructed,
        "bytes": declared_bytes(method, _CLASSES),
    }


def _parts() -> list[list[str]]:
    from sapwood.adapters import ADAPTERS
    from sapwood.heads import HEADS
    from sapwood.objectives import OBJECTIVES

    rows = [["adapter", name, ADAPTERS[name].summary, ADAPTERS[name].growth] for name in ADAPTERS]
    rows += [["objective", name, OBJECTIVES[name].summary, OBJECTIVES[name].growth] for name in OBJECTIVES]
    return rows + [["head", name, HEADS[name].summary, HEADS[name].growth] for name in HEADS]
