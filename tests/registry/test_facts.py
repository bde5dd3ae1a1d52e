"""Every entry says what it is; listings print it and settings are built from it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from sapwood.adapters import ADAPTERS
from sapwood.adapters.base import Adapter
from sapwood.assembly import merge_settings
from sapwood.heads import HEADS
from sapwood.heads.base import Head
from sapwood.methods import METHODS, find_method
from sapwood.objectives import OBJECTIVES
from sapwood.objectives.base import Objective

PARTS: list[Any] = [
    pytest.param(registry[name], base, line, id=f"{registry.kind}-{name}")
    for registry, base, line in (
        (ADAPTERS, Adapter, "summary"),
        (HEADS, Head, "summary"),
        (OBJECTIVES, Objective, "summary"),
    )
    for name in registry  # type: ignore[attr-defined]
]


@pytest.mark.parametrize(("entry", "base", "line"), PARTS)
def test_parts_have_their_facts(entry: Any, base: type, line: str) -> None:
    assert issubclass(entry, base)
    for fact in (getattr(entry, line), entry.growth):
        assert isinstance(fact, str)
        assert fact.strip()
        assert "\n" not in fact
    assert dataclasses.is_dataclass(entry.Config)
    assert entry.Config.__dataclass_params__.frozen
    entry.Config()  # defaults are legal
    documented = (entry.Config.__doc__ or "") + "".join(base.__doc__ or "" for base in entry.Config.__mro__)
    missing = [field.name for field in dataclasses.fields(entry.Config) if field.name not in documented]
    assert not missing, f"settings without a word of what they do: {missing}"


@pytest.mark.parametrize("name", METHODS)
def test_methods_name_what_exists(name: str) -> None:
    method = METHODS[name]
    assert method.name == name
    assert method.title.strip()
    assert method.adapter in ADAPTERS
    assert method.objective in OBJECTIVES
    assert method.head in HEADS
    settings = merge_settings(method)
    for part, values in method.settings.items():
        assert settings[part] | dict(values) == settings[part]
    assert find_method(name) == method
