"""Backbones from a folder as transformers saves it: ``config.json`` and safetensors, nothing unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sapwood.backbones.architectures import ARCHITECTURES, Architecture, planned_backbone
from sapwood.backbones.base import Backbone, first_line
from sapwood.backbones.families import Channels
from sapwood.backbones.library import quiet, transformers_class
from sapwood.errors import BackboneError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of a checkpoint in several files
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def open_folder(
    folder: Path, *, name: str | None = None, revision: str = "local", licence: str = "unknown"
) -> Backbone:
    """A backbone from ``config.json`` and ``model.safetensors`` (or its parts).

    ``preprocessor_config.json`` gives mean and standard deviation where it is there. A checkpoint of the whole
    CLIP, SigLIP or SAM, of a classifier or of a SegFormer will do: only the encoder is read.

    Args:
        folder: as ``save_pretrained`` or a download from the hub leaves it.
        name: for ``info.name``; the folder's absolute path if None.
        revision, licence: for ``info``.

    Raises:
        BackboneError: what is missing, damaged, pickled or of an unknown architecture, with the file.
    """
    family = _family(folder)
    if not (folder / WEIGHTS).is_file() and not (folder / INDEX).is_file():
        raise BackboneError(f"{folder}: {missing_weights([file.name for file in folder.iterdir()])}")
    mean, std = _normalisation(folder / "preprocessor_config.json")
    row = ARCHITECTURES[family]
    return row.wrap(
        _load(folder, row),
        name=name or str(folder.resolve()),
        revision=revision,
        licence=licence,
        mean=mean,
        std=std,
    )


def plan_folder(folder: Path) -> Backbone:
    """The same on the meta device, from ``config.json`` alone: all shapes, no weights.

    Raises:
        BackboneError: as ``open_folder``.
    """
    family = _family(folder)
    row = ARCHITECTURES[family]
    with quiet():
        try:
            config = transformers_class(row.config_class).from_pretrained(folder, local_files_only=True)
            return planned_backbone(str(folder.resolve()), family, config, "unknown")
        except Exception as error:  # transformers' checks of configs raise many kinds
            why = first_line(error)
            raise BackboneError(f"{folder}: config.json does not make a {row.model_class} ({why})") from error


def _family(folder: Path) -> str:
    model_type = str(_read_json(folder / "config.json").get("model_type"))
    family = next((name for name, row in ARCHITECTURES.items() if model_type in row.model_types), None)
    if family is None:
        known = ", ".join(kind for row in ARCHITECTURES.values() for kind in row.model_types)
        raise BackboneError(f"{folder / 'config.json'}: model_type {model_type!r} is not one of {known}")
    return family


def missing_weights(names: list[str]) -> str:
    """Why files of these names cannot be loaded: pickled weights only, or none at all."""
    pickled = sorted(name for name in names if name.endswith(PICKLED))
    if pickled:
        return (
            f"holds pickled weights only ({pickled[0]}), which can run code when read and are refused; "
            f"convert them once with transformers' save_pretrained to {WEIGHTS}"
        )
    return f"holds no {WEIGHTS}"


def _load(folder: Path, row: Architecture) -> Any:
    model_class = transformers_class(row.model_class)
    import torch

    with quiet():
        try:
            model, report = model_class.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
                **row.model_options,
            )
        except Exception as error:  # safetensors, transformers and its checks of configs raise many kinds
            why = first_line(error)
            raise BackboneError(f"{folder}: the weights cannot be loaded as {row.model_class} ({why})") from error
    # transformers fills what a checkpoint lacks with random numbers: never let that pass for pre-trained.
    idle = row.unused or ("\0",)
    missing = sorted(key for key in report["missing_keys"] if not (key.startswith(idle) or key.endswith(idle)))
    if missing:
        raise BackboneError(
            f"{folder}: the weights lack {len(missing)} tensors of {row.model_class}, the first is {missing[0]}"
        )
    return model


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BackboneError(f"{path.parent}: no {path.name}; give a folder written by save_pretrained") from error
    except (OSError, ValueError) as error:
        raise BackboneError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise BackboneError(f"{path}: a JSON object was expected")
    return content


def _normalisation(path: Path) -> tuple[Channels | None, Channels | None]:
    if not path.is_file():
        return None, None
    settings = _read_json(path)
    found = []
    for key in ("image_mean", "image_std"):
        values = settings.get(key)
        if isinstance(values, list) and len(values) == 3:
            found.append((float(values[0]), float(values[1]), float(values[2])))
    return (found[0], found[1]) if len(found) == 2 else (None, None)
