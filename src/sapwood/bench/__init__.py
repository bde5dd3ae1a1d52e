"""Benchmarks: one method through one stream of rounds, one result a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["Run", "run", "validation_stream"]

# Imported when they are first asked for: whoever only starts runs elsewhere need not load torch.
_HOMES = {"Run": "rows", "run": "runner", "validation_stream": "streams"}

if TYPE_CHECKING:
    from sapwood.bench.rows import Run
    from sapwood.bench.runner import run
    from sapwood.bench.streams import validation_stream


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sapwood.bench' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"sapwood.bench.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
