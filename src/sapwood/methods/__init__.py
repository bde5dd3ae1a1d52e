"""Methods: named recipes of adapter + objective + head + settings, and compositions of their parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sapwood.adapters import ADAPTERS
from sapwood.errors import ConfigError, UnknownName
from sapwood.heads import HEADS
from sapwood.methods.mask_recipes import MASK_RECIPES
from sapwood.methods.method import TWINS, Method, Settings, for_kind, merged
from sapwood.methods.recipes import ENDINGS, RECIPES
from sapwood.objectives import OBJECTIVES
from sapwood.registry import Registry

__all__ = ["METHODS", "Method", "Settings", "find_method"]

METHODS: Registry[Method] = Registry("method", "methods")
for _recipe in (*RECIPES, *MASK_RECIPES):
    METHODS.add(_recipe.name, _recipe)

_ALIASES = {"frozen": "none", "full": "full-finetune"}
_ON_ONE_SCALE: Mapping[str, Mapping[str, Any]] = {"dual": {"calibration": 0.0}}
"""Settings of adapters before a head that puts the classes of all rounds on one scale, by sums or by samples of stored
Gaussians: a guess of the round would tell its scores a second time which classes they are among (docs/results.md)."""


def find_method(name: str, head: str | None = None, kind: str | None = None) -> Method:
    """A recipe by name, or a composition: ADAPTER or RECIPE, ``+OBJECTIVE``, ``+slca``, ``+ridge`` or ``+ridge-6``.

    Args:
        name: of the recipe, or the composition.
        head: instead of the recipe's own.
        kind: of task; None takes the one that head and recipe are made for.

    >>> find_method("lora+lwf").objective
    'lwf'
    >>> find_method("none+finetune", head="cosine").head
    'cosine'
    >>> find_method("clora", kind="segmentation").head
    'dense'
    >>> find_method("lora+lwf+ridge").head
    'ridge'
    >>> find_method("o-lora+ridge-6").settings["head"]
    {'drift': 'linear', 'blocks': '-6:'}
    >>> find_method("dual-lora+ridge").settings["adapter"]
    {'calibration': 0.0}
    >>> find_method("color+++slca").adapter
    'experts'
    >>> find_method("seq-lorra")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    sapwood.errors.UnknownName: no method 'seq-lorra'. Did you mean 'seq-lora'? Known methods: ...
    """
    method = METHODS[name] if name in METHODS else _compose(name)
    if head is not None and kind is not None and HEADS[head].kind != kind:
        fitting = ", ".join(each for each in HEADS if HEADS[each].kind == kind)
        raise ConfigError(f"head {head!r} is for {HEADS[head].kind}, not for {kind}. Heads for it: {fitting}")
    if head is not None and head != method.head:
        # Settings of another head would not fit this one.
        settings: Settings = {part: values for part, values in method.settings.items() if part != "head"}
        if HEADS[head].kind != method.kind:
            settings = for_kind(settings, HEADS[head].kind, method.adapter)
        method = _on_one_scale(replace(method, head=head, settings=settings))
    return _of_kind(method, kind or method.kind)


def _compose(name: str) -> Method:
    # The longest recipe that the name begins with: color++ has the sign in its own name.
    whole = max((each for each in METHODS if name.startswith(f"{each}+")), key=len, default="")
    first, *rest = [whole, *name[len(whole) + 1 :].split("+")] if whole else name.split("+")
    first = _ALIASES.get(first, first)
    head = next((piece for piece in rest if piece in ENDINGS), None)
    objectives = [piece for piece in rest if piece != head]
    if not rest or len(objectives) > 1 or (first not in ADAPTERS and first not in METHODS):
        METHODS[name]  # says which names there are
    recipe = METHODS[first] if first in METHODS else Method(first, first, "finetune", "linear", first)
    if objectives and recipe.objective != "finetune":
        METHODS[name]  # two objectives
    objective = objectives[0] if objectives else recipe.objective
    try:
        kinds = OBJECTIVES[objective].kinds
    except UnknownName as error:
        raise UnknownName(f"method {name!r}: {error}") from None
    kind = "classification" if "classification" in kinds else "segmentation"
    settings = recipe.settings if kind == recipe.kind else for_kind(recipe.settings, kind, recipe.adapter)
    own = {part: values for part, values in settings.items() if part in ("adapter", "training")}
    if objective == recipe.objective and "objective" in settings:
        own["objective"] = settings["objective"]
    head_name, head_settings = ENDINGS[head] if head else (TWINS[kind], {})
    return _on_one_scale(
        replace(
            recipe,
            name=name,
            objective=objective,
            head=head_name,
            title=" with ".join([recipe.adapter, *rest]),
            settings=merged(own, {"head": head_settings} if head_settings else {}),
        )
    )


def _on_one_scale(method: Method) -> Method:
    aligned = method.settings.get("head", {}).get("align", "none") != "none"
    if method.adapter not in _ON_ONE_SCALE or not (aligned or HEADS[method.head].fitted == "statistics"):
        return method
    return replace(method, settings=merged({"adapter": _ON_ONE_SCALE[method.adapter]}, method.settings))


def _of_kind(method: Method, kind: str) -> Method:
    """The same recipe for a kind of task."""
    if kind == method.kind and kind in method.kinds:
        return method
    if kind not in method.kinds:
        objective = OBJECTIVES[method.objective]
        part = f"objective {method.objective}" if kind not in objective.kinds else f"head {method.head}"
        fitting = ", ".join(name for name in METHODS if kind in METHODS[name].kinds and not METHODS[name].all_data)
        raise ConfigError(f"method {method.name!r} is not for {kind}: its {part} is not. Methods for it: {fitting}")
    return replace(method, head=TWINS[kind], settings=for_kind(method.settings, kind, method.adapter))
