"""Two tiny rounds through every recipe and every combination of parts."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sapwood.data.sources import list_pictures
from sapwood.data.store import PictureStore
from sapwood.data.transforms import eval_view
from sapwood.learner import Learner
from sapwood.methods import METHODS

TINY = "random:dinov2-tiny"
SIZE = 28
FAST = {"epochs": 2, "batch_size": 8, "precision": "fp32"}
NAMES = [name for name in METHODS if not METHODS[name].all_data]


@dataclass(frozen=True)
class Rounds:
    """Folders of pictures: two rounds of new classes, one of old and new ones, and some to predict."""

    first: Path
    second: Path
    mixed: Path
    other: Path


def small(method: str) -> dict[str, dict[str, Any]]:
    """Settings that make a recipe small without changing what it does."""
    return {"head": {"projection": 64}} if "projection" in METHODS[method].settings.get("head", {}) else {}


def create(
    path: Path, method: str, *, seed: int = 0, settings: Mapping[str, Any] | None = None, **more: Any
) -> Learner:
    settings = small(method) if settings is None and method in METHODS else settings
    return Learner.create(path, backbone=TINY, method=method, image_size=SIZE, seed=seed, settings=settings, **more)


def learn_two(path: Path, method: str, rounds: Rounds, *, seed: int = 0, reopen: bool = False) -> Learner:
    learner = create(path, method, seed=seed).learn(rounds.first, task="first", training=FAST)
    if reopen:
        learner = Learner.open(path)
    return learner.learn(rounds.second, task="second")


def views(folder: Path) -> Tensor:
    """Plain views of all pictures below a folder, uint8 [n, size, size, 3]."""
    store = PictureStore(list_pictures([folder]), SIZE)
    return torch.from_numpy(np.stack([eval_view(store[index], SIZE) for index in range(len(store))]))


@torch.no_grad()
def logits(learner: Learner, images: Tensor) -> Tensor:
    return learner.network.predict(images)


def task_tensors(learner: Learner, task: int = -1) -> dict[str, Tensor]:
    """Every tensor that a round stored, by file and name."""
    folder = learner.record["tasks"][task]["folder"]
    names = [name for name in learner.record["files"] if name.startswith(f"{folder}/") and name.endswith("safetensors")]
    return {f"{name}:{key}": value for name in names for key, value in learner.state.tensors(name).items()}


def differing(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that are not the same, bit for bit."""
    assert one.keys() == two.keys()
    return [name for name, value in one.items() if not same_bits(value, two[name])]


def same_bits(one: Tensor, two: Tensor) -> bool:
    return one.dtype == two.dtype and one.shape == two.shape and one.numpy().tobytes() == two.numpy().tobytes()


def global_random_state() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()
    return (torch.get_rng_state().tolist(), kind, keys.tolist(), rest, copy.deepcopy(random.getstate()))


def seed_globals(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
