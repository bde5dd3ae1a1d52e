"""States of masks for tests, and what they hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sapwood.learner import Learner

Folders = Callable[..., Path]


TINY, SIZE = "random:dinov2-tiny", (28, 42)


FAST = {"epochs": 2, "batch_size": 8, "precision": "fp32"}


def create(path: Path, method: str = "clora+mib", **more: Any) -> Learner:
    return Learner.create(path, **{"backbone": TINY, "image_size": SIZE, "kind": "segmentation"} | more, method=method)


def tensors(learner: Learner) -> dict[str, Tensor]:
    """What the last round stored, by file and name."""
    folder = learner.record["tasks"][-1]["folder"]
    names = [name for name in learner.record["files"] if name.startswith(folder) and name.endswith(".safetensors")]
    found = {name: learner.state.tensors(name) for name in names}
    return {f"{name.removeprefix(folder)}:{key}": value for name in names for key, value in found[name].items()}


def same(one: Learner, two: Learner) -> bool:
    mine, other = tensors(one), tensors(two)
    return mine.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in mine.items())


def masks(learner: Learner, pictures: Any, **options: Any) -> list[np.ndarray]:
    return [answer.mask for answer in learner.predict(pictures, **options)]


def equal(one: list[np.ndarray], two: list[np.ndarray]) -> bool:
    return len(one) == len(two) and all(np.array_equal(mine, other) for mine, other in zip(one, two, strict=True))


def all_bytes(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
