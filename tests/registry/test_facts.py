"""Every entry says what it is; listings print it and settings are built from it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from sapwood.adapters import ADAPTERS
from sapwood.adapters.base import Adapter
from sapwood.assembly import merge_settings
from sapwood.heads import HEADS
from sapwood.heads.base import Head
from sapwood.kinds import KINDS
from sapwood.methods import METHODS, find_method
from sapwood.objectives import OBJECTIVES
from sapwood.objectives.base import NEEDS, Objective

README = Path(__file__).resolve().parents[2] / "README.md"

PARTS: list[Any] = [
    pytest.param(registry[name], base, line, id=f"{registry.kind}-{name}")
    for registry, base, line in (
        (ADAPTERS, Adapter, "summary"),
        (HEADS, Head, "summary"),
        (OBJECTIVES, Objective, "summary"),
    )
    for name in registry  # type: ignore[attr-defined]
]


def config_types(entry: Any) -> set[type]:
    """The settings of a part, for every kind of task it can learn."""
    if not issubclass(entry, Objective):
        return {entry.Config}
    return {entry.config_type(kind) for kind in entry.kinds}


@pytest.mark.parametrize(("entry", "base", "line"), PARTS)
def test_parts_have_their_facts(entry: Any, base: type, line: str) -> None:
    assert issubclass(entry, base)
    for fact in (getattr(entry, line), entry.growth):
        assert isinstance(fact, str)
        assert fact.strip()
        assert "\n" not in fact
    for config_type in config_types(entry):
        assert dataclasses.is_dataclass(config_type)
        assert config_type.__dataclass_params__.frozen  # type: ignore[attr-defined]
        config_type()  # defaults are legal
        documented = "".join(base.__doc__ or "" for base in config_type.__mro__)
        missing = [field.name for field in dataclasses.fields(config_type) if field.name not in documented]
        assert not missing, f"settings without a word of what they do: {missing}"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_say_what_they_are_for(name: str) -> None:
    objective = OBJECTIVES[name]
    assert objective.kinds
    assert objective.kinds <= KINDS.keys()
    assert objective.needs <= NEEDS


@pytest.mark.parametrize("name", HEADS)
def test_heads_are_of_a_kind(name: str) -> None:
    assert HEADS[name].kind in KINDS


@pytest.mark.parametrize("name", METHODS)
def test_methods_name_what_exists(name: str) -> None:
    method = METHODS[name]
    assert method.name == name
    assert method.title.strip()
    assert method.adapter in ADAPTERS
    assert method.objective in OBJECTIVES
    assert method.head in HEADS
    assert method.kinds[0] == method.kind == HEADS[method.head].kind
    assert method.kind in OBJECTIVES[method.objective].kinds
    settings = merge_settings(method)
    for part, values in method.settings.items():
        assert settings[part] | dict(values) == settings[part]
    assert find_method(name) == method


@pytest.mark.parametrize("kind", KINDS)
def test_methods_of_a_kind(kind: str) -> None:
    chosen = {name: find_method(name, kind=kind) for name in METHODS if kind in METHODS[name].kinds}
    assert KINDS[kind].default_method in chosen
    for name, method in chosen.items():
        assert (method.name, method.kind) == (name, kind)
        assert (method.adapter, method.objective) == (METHODS[name].adapter, METHODS[name].objective)
        merge_settings(method)
    assert all(find_method(f"clora{rest}", kind=kind).adapter == "lora" for rest in ("", "+lwf", "+ewc", "+finetune"))


@pytest.mark.parametrize("name", ["seq-lora+ridge", "seq-lora+slca", "inflora+ridge-6"])
def test_a_recipe_named_as_a_composition_is_that_composition(name: str) -> None:
    adapter, ending = name.split("+")
    recipe, made = METHODS[name], find_method(f"{adapter}+finetune+{ending}")
    parts = [(each.adapter, each.objective, each.head, merge_settings(each)) for each in (recipe, made)]
    assert parts[0] == parts[1]
    assert merge_settings(recipe)["head"]["blocks"] == ("-6:" if ending == "ridge-6" else "pooled")


def test_a_head_of_one_scale_gets_no_guess_of_the_round_unless_asked_for() -> None:
    solved = [find_method(f"dual-lora{rest}") for rest in ("+ridge", "+lwf+ridge-6", "+slca")]
    solved += [find_method(name, head=head) for name in ("dual-lora", "dual+ewc") for head in ("ridge", "prototype")]
    assert [merge_settings(method)["adapter"]["calibration"] for method in solved] == [0.0] * 7
    asked = merge_settings(solved[0], {"adapter": {"calibration": 1.0}})
    assert asked["adapter"]["calibration"] == 1.0
    trained = [find_method("dual-lora"), find_method("dual-lora+lwf"), find_method("dual-lora", head="cosine")]
    assert [merge_settings(method)["adapter"]["calibration"] for method in trained] == [1.0] * 3


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("clora", ("lora", "finetune")),
        ("clora+lwf", ("lora", "lwf")),
        ("clora+ilt", ("lora", "ilt")),
        ("clora+mib", ("lora", "mib")),
        ("clora-reinit+mib", ("lora", "mib")),
        ("frozen+mib", ("none", "mib")),
        ("full+mib", ("full", "mib")),
        *((f"clora+{host}", ("lora", host)) for host in ("plop", "rcil", "sats", "ssul", "dkd")),
        *((f"full+{host}", ("full", host)) for host in ("plop", "rcil", "sats", "ssul", "dkd")),
        ("joint", ("lora", "finetune")),
        ("joint-full", ("full", "finetune")),
    ],
)
def test_the_methods_for_masks(name: str, parts: tuple[str, str]) -> None:
    method = find_method(name, kind="segmentation")
    assert (method.adapter, method.objective, method.head) == (*parts, "dense")
    assert method.settings["training"]["epochs"] == 10
    settings = merge_settings(method)
    assert settings["adapter"].get("reinit", False) == (name == "clora-reinit+mib")
    if "clora" in name:
        assert "2507.19887" in method.reference


@pytest.mark.parametrize(("kind", "said"), [("classification", "`learn` takes `{}`"), ("segmentation", "masks is {}")])
def test_the_default_is_what_the_readme_names(kind: str, said: str) -> None:
    assert said.format(KINDS[kind].default_method) in README.read_text(encoding="utf-8")


@pytest.mark.parametrize(("method", "lr"), [("seq-lora", 3e-4), ("c-lora", 1e-4), ("dual-lora", 3e-4), ("color", 1e-3)])
def test_rates_are_those_that_the_trials_chose(method: str, lr: float) -> None:
    training = merge_settings(find_method(method), {})["training"]
    assert (training["lr"], training["head_lr"]) == (lr, 1e-2)
