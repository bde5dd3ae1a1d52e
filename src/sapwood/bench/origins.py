"""Which code a row was computed by: the package's own, and that of the packages that its parts come from."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from sapwood.adapters import ADAPTERS
from sapwood.backbones.catalogue import BACKBONES
from sapwood.heads import HEADS
from sapwood.methods import Method
from sapwood.objectives import OBJECTIVES
from sapwood.registry import Origin

OWN = "sapwood"


def code_of(method: Method, backbone: str) -> dict[str, str]:
    """SHA-256 of the sources of sapwood and of each other package that a part comes from, by its name.

    >>> from sapwood.methods import find_method
    >>> list(code_of(find_method("seq-lora"), "random:dinov2-tiny"))
    ['sapwood']
    """
    return {OWN: sources_sha256(OWN)} | {
        each.package: sources_sha256(each.package) for each in others(method, backbone)
    }


def others(method: Method, backbone: str) -> tuple[Origin, ...]:
    """The packages beside sapwood that parts come from."""
    found = [ADAPTERS.origin(method.adapter), OBJECTIVES.origin(method.objective), HEADS.origin(method.head)]
    if backbone in BACKBONES:
        found.append(BACKBONES.origin(backbone))
    named = {each.package: each for each in found if each.package != OWN}
    return tuple(named[package] for package in sorted(named))


@cache
def sources_sha256(package: str) -> str:
    """Of a loaded package's Python files, by name and content; of a module, of its file."""
    module = sys.modules[package]
    digest = hashlib.sha256()
    for folder in map(Path, getattr(module, "__path__", ())):
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    if not hasattr(module, "__path__") and (name := getattr(module, "__file__", None)):
        digest.update(Path(name).read_bytes())
    return digest.hexdigest()


def states_of_code(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many states of each package's sources the rows were computed by, where there is more than one."""
    found: dict[str, set[str]] = {}
    for row in rows:
        for code in (row.get("code", {OWN: row.get("code_sha256")}), *row.get("earlier_code", ())):
            for package, sha256 in code.items():
                found.setdefault(package, set()).add(sha256)
    return {package: len(states) for package, states in sorted(found.items()) if len(states) > 1}
