"""Adapters by name."""

from __future__ import annotations

from sapwood.adapters.base import Adapter, Context, Statistics
from sapwood.adapters.full import FullFinetuning
from sapwood.adapters.lora import Lora
from sapwood.adapters.none import NoAdapter
from sapwood.registry import Registry

ADAPTERS: Registry[type[Adapter]] = Registry("adapter", "adapters")
ADAPTERS.add("none", NoAdapter)
ADAPTERS.add("lora", Lora)
ADAPTERS.add("full", FullFinetuning)

__all__ = ["ADAPTERS", "Adapter", "Context", "Statistics"]
