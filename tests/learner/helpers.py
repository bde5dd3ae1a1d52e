"""Small learners, and what they hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sapwood.learner import Learner
from sapwood.progress import Progress

Folders = Callable[..., Path]
TINY = "random:dinov2-tiny"
FAST = {"epochs": 2, "batch_size": 8, "precision": "fp32"}


def create(path: Path, method: str = "seq-lora", **more: Any) -> Learner:
    return Learner.create(path, backbone=TINY, method=method, image_size=28, **more)


def tensors(learner: Learner) -> dict[str, Tensor]:
    folder = learner.record["tasks"][-1]["folder"]
    names = [name for name in learner.record["files"] if name.startswith(folder) and name.endswith(".safetensors")]
    return {f"{name}:{key}": value for name in names for key, value in learner.state.tensors(name).items()}


def same(one: Learner, two: Learner) -> bool:
    mine, other = tensors(one), tensors(two)
    return mine.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in mine.items())


class Notes(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("lock")
    }
