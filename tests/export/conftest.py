"""States to export: two tiny rounds by any method, learned once in a process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sapwood.export import Plain
from sapwood.learner import Learner
from sapwood.methods import METHODS
from sapwood.state import State

TINY = "random:dinov2-tiny"
SIZES: dict[str, Any] = {"classification": 28, "segmentation": (28, 42)}
QUICK = {"epochs": 2, "batch_size": 8, "precision": "fp32", "lr": 0.01}

Taught = Callable[..., Path]

_STATES: dict[tuple[str, ...], Path] = {}
_FOLDERS: dict[str, tuple[Path, Path, Path]] = {}


def odd_pictures(picture: Path, folder: Path) -> list[Path]:
    """A picture on its side, half clear, of 16-bit grey, of a palette with a clear colour, and large."""
    image = Image.open(picture).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "turned.png", exif=exif)
    clear = image.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(image.size))
    clear.save(folder / "clear.png")
    deep = np.asarray(image.convert("L"), np.uint16) * 201 + 77
    Image.fromarray(deep).save(folder / "deep.png")
    image.quantize(16).save(folder / "palette.png", transparency=3)
    image.resize((97, 84), Image.Resampling.NEAREST).save(folder / "large.png")
    return [folder / name for name in ("turned.png", "clear.png", "deep.png", "palette.png", "large.png")]


@pytest.fixture
def rounds(picture_folder: Callable[..., Path], mask_folder: Callable[..., Path]) -> Callable[[str], tuple[Path, ...]]:
    """Folders of two rounds and of test pictures, by kind; made by the first that asks."""

    def give(kind: str) -> tuple[Path, Path, Path]:
        if kind not in _FOLDERS:
            if kind == "classification":
                _FOLDERS[kind] = (
                    picture_folder(["ant", "bee"], 4, name="first"),
                    picture_folder(["cat", "dog"], 4, name="second"),
                    picture_folder(["ant", "bee", "cat", "dog"], 2, name="other", seed=2, size=60),
                )
            else:
                _FOLDERS[kind] = (
                    mask_folder(["ant", "bee"], 4, name="first-masks", size=(40, 60)),
                    mask_folder(["cat", "dog"], 4, also=["bee"], name="second-masks", size=(40, 60)),
                    mask_folder(["ant", "bee", "cat", "dog"], 4, name="other-masks", seed=2, size=(40, 60)),
                )
        return _FOLDERS[kind]

    return give


@pytest.fixture
def taught(rounds: Callable[[str], tuple[Path, ...]], tmp_path: Path) -> Taught:
    """``taught("seq-lora")``: the folder of a state that has learned both rounds; tests must not change it."""

    def give(method: str, kind: str = "classification", backbone: str = TINY, size: Any = None) -> Path:
        key = (method, kind, backbone, str(size))
        if key not in _STATES:
            path = tmp_path / "-".join(key).replace(":", "-").replace("/", "-")
            projected = "projection" in METHODS[method].settings.get("head", {}) if method in METHODS else False
            learner = Learner.create(
                path,
                method=method,
                backbone=backbone,
                kind=kind,
                image_size=size or SIZES[kind],
                settings={"head": {"projection": 64}} if projected else None,
            )
            first, second, _ = rounds(kind)
            learner.learn(first, task="first", training=QUICK)
            learner.learn(second, task="second")
            _STATES[key] = path
        return _STATES[key]

    return give


@pytest.fixture
def plain(taught: Taught) -> Callable[..., Plain]:
    """The same as ``Plain``, opened anew each time."""

    def give(method: str, kind: str = "classification", *, task: int | None = None, **state: Any) -> Plain:
        return Plain.open(State.open(taught(method, kind, **state)), task)

    return give
