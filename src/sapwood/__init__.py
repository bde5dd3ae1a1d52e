"""sapwood: continual learning of frozen pre-trained vision models with low-rank adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Learner", "SapwoodError", "__version__"]

_HOMES = {"Learner": "sapwood.learner", "SapwoodError": "sapwood.errors"}

if TYPE_CHECKING:
    from sapwood.errors import SapwoodError
    from sapwood.learner import Learner


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sapwood' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
