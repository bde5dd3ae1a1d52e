"""Named recipes: adapter + objective + head + settings + reference. Data, no machinery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sapwood.adapters import ADAPTERS
from sapwood.errors import ConfigError, UnknownName
from sapwood.heads import HEADS
from sapwood.objectives import OBJECTIVES
from sapwood.registry import Registry

Settings = Mapping[str, Mapping[str, Any]]


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

    @property
    def kind(self) -> str:
        """The kind of task that its head is made for."""
        return HEADS[self.head].kind

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of task that it can learn, its own first: a plain gradient head has a twin of the other kind."""
        plain = self.head in _TWINS.values() and not self.settings.get("head")
        return tuple(
            kind
            for kind in sorted(_TWINS, key=lambda kind: kind != self.kind)
            if kind in OBJECTIVES[self.objective].kinds and (kind == self.kind or plain)
        )

    def of_kind(self, kind: str) -> Method:
        """The same recipe for a kind of task.

        Raises:
            ConfigError: it cannot learn this kind; the message says why and what can.
        """
        if kind == self.kind and kind in self.kinds:
            return self
        if kind not in self.kinds:
            objective = OBJECTIVES[self.objective]
            part = f"objective {self.objective}" if kind not in objective.kinds else f"head {self.head}"
            fitting = ", ".join(name for name in METHODS if kind in METHODS[name].kinds and not METHODS[name].all_data)
            raise ConfigError(f"method {self.name!r} is not for {kind}: its {part} is not. Methods for it: {fitting}")
        return replace(self, head=_TWINS[kind], settings=_merged(self.settings, _KIND_SETTINGS[kind]))


_TWINS = {"classification": "linear", "segmentation": "dense"}
# A mask holds thousands of targets a picture: fewer pictures a step, more passes over them, a higher rate.
_KIND_SETTINGS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "classification": {},
    "segmentation": {"training": {"epochs": 10, "batch_size": 8, "lr": 1e-3}},
}


def _merged(one: Settings, other: Settings) -> Settings:
    return {part: {**one.get(part, {}), **other.get(part, {})} for part in (*one, *other)}


METHODS: Registry[Method] = Registry("method", "methods")

_ALIGN = {"align": "gaussian"}
_RANPAC = {"projection": 2000}
# Nothing learned before can be hurt in the first round, so the rate is that of joint training.
_FIRST = {"adapt": "first", "lr": 2e-3}
_FULL = {"lr": 3e-5, "head_lr": 3e-3}
_MASKS = _KIND_SETTINGS["segmentation"]
_CLORA = "CoLLAs 2025, arXiv 2507.19887"

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
    Method("clora", "lora", "finetune", "linear", "seq-lora by its segmentation name: CLoRA (FT)", _CLORA),
    Method("clora+lwf", "lora", "lwf", "linear", "CLoRA with distillation of the old classes", _CLORA),
    Method("clora+ilt", "lora", "ilt", "dense", "CLoRA with distillation of logits and features", _CLORA, _MASKS),
    Method("clora+mib", "lora", "mib", "dense", "CLoRA with losses that know of the background shift", _CLORA, _MASKS),
    Method(
        "clora-reinit+mib",
        "lora",
        "mib",
        "dense",
        "as clora+mib, with a fresh LoRA in every round",
        _CLORA,
        _merged(_MASKS, {"adapter": {"reinit": True}}),
    ),
    Method("frozen+mib", "none", "mib", "dense", "decoder and classifiers learn alone: MiB (TL)", _CLORA, _MASKS),
    Method(
        "full+mib",
        "full",
        "mib",
        "dense",
        "all weights train: MiB itself",
        "CVPR 2020, arXiv 2002.00718",
        _merged(_MASKS, {"training": {"lr": 3e-5, "head_lr": 1e-3}}),
    ),
):
    METHODS.add(_method.name, _method)

_ADAPTER_ALIASES = {"seq-lora": "lora", "clora": "lora", "full-finetune": "full", "frozen": "none"}


def find_method(name: str, head: str | None = None, kind: str | None = None) -> Method:
    """A recipe by name, or a composition ``ADAPTER+OBJECTIVE`` or ``ADAPTER+slca``, with another head if one is named.

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
            settings = _merged(settings, _KIND_SETTINGS[HEADS[head].kind])
        method = replace(method, head=head, settings=settings)
    return method.of_kind(kind or method.kind)


def _compose(name: str) -> Method:
    first, *rest = name.split("+")
    adapter = _ADAPTER_ALIASES.get(first, first)
    aligned = "slca" in rest
    objectives = [piece for piece in rest if piece != "slca"]
    if adapter not in ADAPTERS or not rest or len(objectives) > 1:
        METHODS[name]
    objective = objectives[0] if objectives else "finetune"
    try:
        kinds = OBJECTIVES[objective].kinds
    except UnknownName as error:
        raise UnknownName(f"method {name!r}: {error}") from None
    kind = "classification" if "classification" in kinds else "segmentation"
    settings = _merged({"head": _ALIGN} if aligned else {}, _KIND_SETTINGS[kind])
    return Method(name, adapter, objective, _TWINS[kind], f"{adapter} with {objective}", settings=settings)
