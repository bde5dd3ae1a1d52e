"""Options that commands share, and what they mean for a state that is there already."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from sapwood.errors import ConfigError
from sapwood.settings import build, parse_assignments, plain

StateFolder = Annotated[Path, typer.Argument(metavar="STATE", help="The state folder.", show_default=False)]
Labelled = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Labelled pictures: folder/CLASS/*.jpg, a CSV with path,label, a saved data set; or folder/images/*, "
        "folder/masks/*.png and folder/classes.json.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out pictures that cannot be read.")]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps; by default cuda if there is one.")
]

ImageSize = Annotated[
    str | None,
    typer.Option(
        "--image-size",
        metavar="SIDE|HEIGHTxWIDTH",
        help="Pixels of a view, multiples of the patch; two numbers for masks (new states only).",
    ),
]
Tile = Annotated[
    bool, typer.Option("--tile", help="Masks: cut large pictures into views instead of shrinking them to one.")
]

_PARTS = ("adapter", "objective", "head", "training")

Settings = dict[str, dict[str, Any]]


def read_size(text: str | None) -> int | tuple[int, int] | None:
    """A size of views as it is written on the command line.

    >>> read_size("224"), read_size("168x224")
    (224, (168, 224))
    """
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise ConfigError(f"--image-size {text!r}: write a number, or height x width as 168x224")
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def read_settings(config: Path | None, assignments: list[str], training: Mapping[str, Any]) -> Settings:
    """Settings by part: the file's, over them ``--set``, over them the training options that were given."""
    settings = _read_config(config) if config is not None else {}
    for part, values in parse_assignments(assignments).items():
        settings.setdefault(part, {}).update(values)
    if given := {key: value for key, value in training.items() if value is not None}:
        settings.setdefault("training", {}).update(given)
    return settings


def _read_config(path: Path) -> Settings:
    try:
        text = path.read_text("utf-8")
        content = tomllib.loads(text) if path.suffix.lower() == ".toml" else json.loads(text)
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        kind = "TOML" if path.suffix.lower() == ".toml" else "JSON"
        raise ConfigError(f"--config {path}: is not {kind} ({error}); TOML files end in .toml") from error
    parts = content if isinstance(content, dict) else {}
    faults = [part for part, values in parts.items() if part not in _PARTS or not isinstance(values, dict)]
    if faults or not isinstance(content, dict):
        where = f" ({faults[0]!r} is not)" if faults else ""
        raise ConfigError(f"--config {path}: must hold tables of settings for {', '.join(_PARTS)}{where}")
    return {part: dict(values) for part, values in parts.items()}


def check_unchanged(record: Mapping[str, Any], where: Path, given: Mapping[str, Any], settings: Settings) -> None:
    """Refuse what a state cannot change after it was made; repeating what it has is fine.

    Args:
        record: of the current version.
        where: the state folder, for the message.
        given: ``method``, ``head``, ``backbone``, ``image_size``, ``seed`` as given; None where not.
        settings: by part, as given; those of ``training`` may change.

    Raises:
        UsageError: an unknown name, or a value that differs; the message says what the state has.
    """
    from sapwood.assembly import config_types
    from sapwood.heads import HEADS
    from sapwood.methods import find_method

    parts = record["parts"]
    if given["method"] is not None:
        find_method(given["method"])
    if given["head"] is not None:
        HEADS[given["head"]]
    has = {
        "--method": (given["method"], record["method"]),
        "--head": (given["head"], parts["head"]),
        "--backbone": (_whole_path(given["backbone"]), record["backbone"]["name"]),
        "--image-size": (_same_form(given["image_size"], record["image_size"]), record["image_size"]),
        "--seed": (given["seed"], record["seed"]),
    }
    faults = [f"{name} {old}, not {new}" for name, (new, old) in has.items() if new is not None and new != old]
    for part, config_type in config_types(parts).items():
        if part == "training":
            continue
        old = record["settings"][part]
        new = plain(build(config_type, {**old, **settings.get(part, {})}, part))
        faults += [f"{part}.{key}={old[key]}, not {new[key]}" for key in new if new[key] != old[key]]
    if faults:
        fresh = record["number"] == 1
        remedy = "remove the folder, it has learned nothing yet" if fresh else "name a new state folder"
        raise ConfigError(f"{where} was made with {'; '.join(faults)}; leave these options out, or {remedy}")


def _same_form(size: int | tuple[int, int] | None, recorded: int | list[int]) -> int | list[int] | None:
    """A size as the record writes it: of masks always two numbers."""
    if size is None or isinstance(recorded, int):
        return size if not isinstance(size, tuple) else list(size)
    return [size, size] if isinstance(size, int) else list(size)


def _whole_path(backbone: str | None) -> str | None:
    """A local folder as the record names it."""
    return backbone if backbone is None or not Path(backbone).is_dir() else str(Path(backbone).resolve())


def check_device(name: str | None) -> None:
    """Refuse a device that torch does not know or this machine does not have."""
    if name is None:
        return
    import torch

    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).split("\n")[0]
        raise ConfigError(f"--device {name} cannot be used here ({why}); leave it out, or give cpu") from error
