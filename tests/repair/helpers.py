"""States that are mended, beside states that never needed it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sapwood.learner import Learner
from sapwood.state import State

Folders = Callable[..., Path]
FAST = {"epochs": 1, "batch_size": 8, "precision": "fp32"}
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("ncm", {}),
    ("ranpac", {"head": {"strength": 1.0, "projection": 40}}),
    ("ridge-4", {"head": {"strength": 1.0}}),
    ("seq-lora+ridge", {"head": {"strength": 1e-3, "drift": "none"}, "training": {"adapt": "first"}}),
]
methods = pytest.mark.parametrize(("method", "settings"), METHODS[:3], ids=["ncm", "ranpac", "ridge-4"])
ROUNDS = ({"ant": 11, "bee": 12, "cow": 3}, {"dog": 4, "bee": 2})
_memory: dict[str, Tensor] = {}


def learn(path: Path, method: str, settings: dict[str, Any], *rounds: Path, **more: Any) -> Learner:
    learner = Learner.create(path, backbone="random:dinov2-tiny", method=method, image_size=28, settings=settings)
    learner.memory = _memory  # the same picture has the same features, to the last bit, in every state
    for number, data in enumerate(rounds):
        learner.learn(data, task=f"round {number + 1}", training=FAST, **more)
    return learner


def numbers(path: Path) -> dict[str, Tensor]:
    head: Any = Learner.open(path).network.head
    found = (
        {"mean": head.mean}
        if hasattr(head, "mean")
        else {"solution": head.solve(), "gram": head.gram, "cross": head.cross}
    )
    return found | {"total": head.sums.total, "known": head.sums.gram, "count": head.count.double()}


def assert_alike(one: Path, other: Path, tolerance: float = 1e-8) -> None:
    mine, theirs = numbers(one), numbers(other)
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], atol=tolerance, rtol=0, msg=lambda text, n=name: f"{n}: {text}")


def rows(state: State, index: int) -> list[dict[str, Any]]:
    text = state.text(f"{state.version.record['tasks'][index]['folder']}/pictures.jsonl")
    return [json.loads(line) for line in text.splitlines()]


def other(rounds: list[Path], change: Callable[[Path], Any]) -> list[Path]:
    """Copies of the rounds' folders, changed."""
    copies = [shutil.copytree(each, each.parent / f"other-{each.name}") for each in rounds]
    for each in copies:
        change(each)
    return copies
