"""Two tiny rounds through every recipe and every combination of parts, of both kinds of task."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich.style  # noqa: F401  (draws from the global generator when it is imported, as the first progress bar does)
import torch
from torch import Tensor

from sapwood.data.sources import list_pictures
from sapwood.data.store import PictureStore
from sapwood.data.transforms import eval_view
from sapwood.learner import Learner
from sapwood.methods import METHODS, find_method

TINY = "random:dinov2-tiny"
SIZES: dict[str, Any] = {"classification": 28, "segmentation": (28, 42)}
FAST = {"epochs": 2, "batch_size": 8, "precision": "fp32"}
PAIRS = [(name, kind) for name in METHODS if not METHODS[name].all_data for kind in METHODS[name].kinds]


every_method = pytest.mark.parametrize(("method", "kind"), PAIRS, ids=["-".join(pair) for pair in PAIRS])


@dataclass(frozen=True)
class Rounds:
    """Folders of one kind: two rounds of new classes, one of old and new ones, a little one, and some to predict.

    Attributes:
        classes: what is known after the first two.
        single: a round of one class (the first of any state).
    """

    classes: tuple[str, ...]
    first: Path
    second: Path
    mixed: Path
    other: Path
    single: Path
    little: Path


def small(method: str) -> dict[str, dict[str, Any]]:
    """Settings that make a recipe small without changing what it does."""
    return {"head": {"projection": 64}} if "projection" in METHODS[method].settings.get("head", {}) else {}


def create(
    path: Path,
    method: str,
    kind: str | None = None,
    *,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    **more: Any,
) -> Learner:
    settings = small(method) if settings is None and method in METHODS else settings
    kind = kind or find_method(method, more.get("head")).kind
    options = {"backbone": TINY, "kind": kind, "image_size": SIZES[kind], "seed": seed, "settings": settings}
    return Learner.create(path, method=method, **{**options, **more})


def learn_two(path: Path, method: str, rounds: Rounds, kind: str, *, seed: int = 0, reopen: bool = False) -> Learner:
    learner = create(path, method, kind, seed=seed).learn(rounds.first, task="first", training=FAST)
    if reopen:
        learner = Learner.open(path)
    return learner.learn(rounds.second, task="second")


def views(folder: Path, kind: str) -> Tensor:
    """Plain views of all pictures below a folder, uint8 [n, H, W, 3]."""
    if kind == "segmentation":
        height, width = SIZES[kind]
        store = PictureStore(list_pictures([folder / "images"]), height)
        assert all(store[index].shape == (height, width, 3) for index in range(len(store)))
        return torch.from_numpy(np.stack([store[index] for index in range(len(store))]))
    store = PictureStore(list_pictures([folder]), SIZES[kind])
    return torch.from_numpy(np.stack([eval_view(store[index], SIZES[kind]) for index in range(len(store))]))


@torch.no_grad()
def logits(learner: Learner, images: Tensor) -> Tensor:
    return learner.network.predict(images)


def computed(learner: Learner, scores: Tensor) -> bool:
    """Whether no score is NaN or infinite; an adapter that calibrates may rule classes out (-inf), never all."""
    ruled_out = (scores == -torch.inf) & learner.network.adapter.calibrates
    return bool((scores.isfinite() | ruled_out).all()) and bool(scores.isfinite().any(1).all())


def answers(learner: Learner, folder: Path) -> list[Any]:
    """All that ``predict`` says of the pictures below a folder, so that two lists can be compared."""
    given = learner.predict(folder / "images" if learner.kind.name == "segmentation" else folder)
    if learner.kind.name != "segmentation":
        return given
    return [(answer.path, answer.mask.tobytes(), answer.mask.shape, answer.shares, answer.classes) for answer in given]


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


def feature_bytes(learner: Learner) -> int:
    """Of the last round's pictures, kept by heads that predict from statistics on a backbone that stays."""
    task, parts = learner.record["tasks"][-1], learner.record["parts"]
    stays = parts["adapter"] == "none" or learner.record["settings"]["training"]["adapt"] == "first"
    return 4 * task["images"] * learner.network.head.dim if parts["head"] in ("prototype", "ridge") and stays else 0
