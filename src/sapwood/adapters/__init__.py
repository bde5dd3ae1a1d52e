"""Adapters by name."""

from __future__ import annotations

from sapwood.adapters.base import Adapter, Context, Statistics
from sapwood.adapters.dual import Dual
from sapwood.adapters.experts import Experts
from sapwood.adapters.full import FullFinetuning
from sapwood.adapters.inflora import InfLora
from sapwood.adapters.lora import Lora
from sapwood.adapters.none import NoAdapter
from sapwood.adapters.orthogonal import Orthogonal
from sapwood.adapters.routed import Routed
from sapwood.adapters.sdlora import SDLora
from sapwood.registry import Registry

ADAPTERS: Registry[type[Adapter]] = Registry("adapter", "adapters")
ADAPTERS.add("none", NoAdapter)
ADAPTERS.add("lora", Lora)
ADAPTERS.add("routed", Routed)
ADAPTERS.add("dual", Dual)
ADAPTERS.add("experts", Experts)
ADAPTERS.add("inflora", InfLora)
ADAPTERS.add("orthogonal", Orthogonal)
ADAPTERS.add("sdlora", SDLora)
ADAPTERS.add("full", FullFinetuning)

__all__ = ["ADAPTERS", "Adapter", "Context", "Statistics"]
