"""A backbone beside the state that was made on it: opened from there, without network and cache."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sapwood.backbones.base import Backbone, Size, first_line
from sapwood.backbones.catalogue import create_backbone, plan_backbone
from sapwood.backbones.folder import open_folder, plan_folder
from sapwood.backbones.library import LibraryBackbone, quiet
from sapwood.errors import BackboneError

FOLDER = "backbone"
_ONE_FILE = "100TB"


def open_recorded(info: Mapping[str, Any], image_size: Size | None, root: Path | None) -> Backbone:
    """The backbone that a state records: from the state's own folder where it was packed into it, else by its name.

    Args:
        info: what the state records of it.
        image_size: see ``create_backbone``.
        root: the state's folder, if there is one.

    Raises:
        BackboneError: the weights cannot be had or read.
    """
    if root is None or not _is_packed(root):
        return create_backbone(info["name"], image_size, revision=info["revision"])
    backbone = open_folder(root / FOLDER, name=info["name"], revision=info["revision"], licence=info["licence"])
    if image_size is not None:
        backbone.resize(image_size)
    return backbone


def plan_recorded(info: Mapping[str, Any], image_size: Size | None, root: Path) -> Backbone:
    """The same on the meta device: all shapes, no weights."""
    if not _is_packed(root):
        return plan_backbone(info["name"], image_size)
    backbone = plan_folder(root / FOLDER)
    if image_size is not None:
        backbone.resize(image_size)
    return backbone


def save_backbone(backbone: Backbone, folder: Path) -> None:
    """Write config, weights (safetensors) and normalisation to a new folder, and read them again to be sure.

    Raises:
        BackboneError: it is not one of transformers' models, or what was written is not what was to be kept.
    """
    info = backbone.info
    if not isinstance(backbone, LibraryBackbone):
        raise BackboneError(
            f"{info.name} is no model of transformers, so it cannot be kept beside a state; "
            "take the package and its cache along to the other machine"
        )
    folder.mkdir()
    with quiet():
        try:
            backbone.model.save_pretrained(folder, max_shard_size=_ONE_FILE)
        except (RuntimeError, ValueError) as error:
            raise BackboneError(f"{info.name} cannot be written ({first_line(error)})") from error
    source = {
        "name": info.name,
        "family": info.family,
        "revision": info.revision,
        "sha256": info.sha256,
        "licence": info.licence,
    }
    _write(folder / "preprocessor_config.json", {"image_mean": info.mean, "image_std": info.std})
    _write(folder / "source.json", source)
    found = open_folder(folder).info
    if (found.sha256, found.family) != (info.sha256, info.family):
        raise BackboneError(f"{info.name}: what was written to {folder} is not the same network")


def _is_packed(root: Path) -> bool:
    return (root / FOLDER / "config.json").is_file()


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
