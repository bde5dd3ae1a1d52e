"""Named recipes: adapter + objective + head + settings + reference. Data, no machinery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sapwood.adapters import ADAPTERS
from sapwood.errors import UnknownName
from sapwood.heads import HEADS
from sapwood.objectives import OBJECTIVES
from sapwood.registry import Registry


@dataclass(frozen=True)
class Method:
    """A recipe.

    Attributes:
        name: on the command line.
        adapter, objective, head: registry names of the parts.
        settings: per part, what differs from the parts' defaults.
        title: one line of what it does.
        reference: paper, or empty for compositions.
        all_data: needs the pictures of all rounds at once; an upper bound, only in benchmarks.
    """

    name: str
    adapter: str
    objective: str
    head: str
    title: str
    reference: str = ""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    all_data: bool = False


METHODS: Registry[Method] = Registry("method", "methods")

_ALIGN = {"align": "gaussian"}
_RANPAC = {"projection": 2000}
# Nothing learned before can be hurt in the first round, so the rate is that of joint training.
_FIRST = {"adapt": "first", "lr": 2e-3}
_FULL = {"lr": 3e-5, "head_lr": 3e-3}

for _method in (
    Method("seq-lora", "lora", "finetune", "linear", "one LoRA, learning on in every round", "arXiv 2106.09685"),
    Method("lora+lwf", "lora", "lwf", "linear", "LoRA with distillation of the old classes", "ECCV 2016"),
    Method("lora+ewc", "lora", "ewc", "linear", "LoRA anchored by the Fisher diagonal", "arXiv 1612.00796"),
    Method(
        "full-finetune",
        "full",
        "finetune",
        "linear",
        "all weights train",
        settings={"training": {"lr": 3e-5, "head_lr": 1e-3}},
    ),
    Method(
        "slca",
        "full",
        "finetune",
        "linear",
        "all weights at a hundredth of the head's rate, head aligned on Gaussians",
        "ICCV 2023, arXiv 2303.05118",
        {"training": _FULL, "head": _ALIGN},
    ),
    Method("seq-lora+slca", "lora", "finetune", "linear", "LoRA, head aligned on Gaussians", settings={"head": _ALIGN}),
    Method(
        "seq-lora+ridge",
        "lora",
        "finetune",
        "ridge",
        "LoRA, ridge head whose sums are carried along when the features move",
        settings={"head": {"drift": "linear"}},
    ),
    Method("ncm", "none", "finetune", "prototype", "frozen features, nearest class mean", "arXiv 2303.07338"),
    Method(
        "ranpac",
        "none",
        "finetune",
        "ridge",
        "frozen features, random projection, ridge regression",
        "NeurIPS 2023, arXiv 2307.02251",
        {"head": _RANPAC},
    ),
    Method(
        "lora+ranpac",
        "lora",
        "finetune",
        "ridge",
        "LoRA learns in the first round and stays, then as ranpac",
        "NeurIPS 2023, arXiv 2307.02251",
        {"head": _RANPAC, "training": _FIRST},
    ),
    Method(
        "joint",
        "lora",
        "finetune",
        "linear",
        "all rounds' pictures at once, LoRA: upper bound",
        settings={"training": {"lr": 2e-3}},
        all_data=True,
    ),
    Method(
        "joint-full",
        "full",
        "finetune",
        "linear",
        "all rounds' pictures at once, all weights: upper bound",
        settings={"training": {"lr": 3e-5, "head_lr": 1e-3}},
        all_data=True,
    ),
):
    METHODS.add(_method.name, _method)

_ADAPTER_ALIASES = {"seq-lora": "lora", "clora": "lora", "full-finetune": "full", "frozen": "none"}


def find_method(name: str, head: str | None = None) -> Method:
    """A recipe by name, or a composition ``ADAPTER+OBJECTIVE`` or ``ADAPTER+slca``, with another head if one is named.

    >>> find_method("lora+lwf").objective
    'lwf'
    >>> find_method("none+finetune", head="cosine").head
    'cosine'
    >>> find_method("seq-lorra")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    sapwood.errors.UnknownName: no method 'seq-lorra'. Did you mean 'seq-lora'? Known methods: ...
    """
    method = METHODS[name] if name in METHODS else _compose(name)
    if head is None or head == method.head:
        return method
    HEADS[head]
    # Settings of another head would not fit this one.
    settings = {part: values for part, values in method.settings.items() if part != "head"}
    return replace(method, head=head, settings=settings)


def _compose(name: str) -> Method:
    first, *rest = name.split("+")
    adapter = _ADAPTER_ALIASES.get(first, first)
    aligned = "slca" in rest
    objectives = [piece for piece in rest if piece != "slca"]
    if adapter not in ADAPTERS or not rest or len(objectives) > 1:
        METHODS[name]
    objective = objectives[0] if objectives else "finetune"
    try:
        OBJECTIVES[objective]
    except UnknownName as error:
        raise UnknownName(f"method {name!r}: {error}") from None
    settings = {"head": _ALIGN} if aligned else {}
    return Method(name, adapter, objective, "linear", f"{adapter} with {objective}", settings=settings)
