"""Every adapter with every objective and every head; the parts know nothing of each other."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from sapwood.adapters import ADAPTERS
from sapwood.heads import HEADS
from sapwood.learner import Learner
from sapwood.objectives import OBJECTIVES

from .helpers import FAST, Rounds, create, logits, same_bits, views

ONE_EPOCH = {**FAST, "epochs": 1}


def learn_and_open(path: Path, rounds: Rounds, method: str, head: str, settings: dict[str, Any]) -> None:
    learner = create(path, method, head=head, settings=settings)
    learner.learn(rounds.mixed, training=ONE_EPOCH).learn(rounds.other)
    images = views(rounds.other)
    scores = logits(learner, images)
    assert scores.shape == (len(images), 5)
    assert scores.isfinite().all()
    assert same_bits(logits(Learner.open(path), images), scores)


@pytest.mark.parametrize(("adapter", "objective", "head"), list(itertools.product(ADAPTERS, OBJECTIVES, HEADS)))
def test_all_parts_fit(adapter: str, objective: str, head: str, rounds: Rounds, tmp_path: Path) -> None:
    learn_and_open(tmp_path / "state", rounds, f"{adapter}+{objective}", head, {})


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize(
    ("head", "settings"),
    [
        ("linear", {"align": "gaussian", "covariance": "shared"}),
        ("cosine", {"align": "gaussian", "drift": "linear"}),
        ("prototype", {"drift": "linear"}),
        ("ridge", {"drift": "linear"}),
        ("ridge", {"projection": 48}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_options_of_heads_fit(
    adapter: str, head: str, settings: dict[str, Any], rounds: Rounds, tmp_path: Path
) -> None:
    learn_and_open(tmp_path / "state", rounds, f"{adapter}+finetune", head, {"head": settings})


@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("head", ["linear", "ridge"])
def test_adapting_in_the_first_round_only(
    adapter: str, objective: str, head: str, rounds: Rounds, tmp_path: Path
) -> None:
    settings = {"training": {"adapt": "first"}, "objective": {"scope": "seen"}}
    learn_and_open(tmp_path / "state", rounds, f"{adapter}+{objective}", head, settings)
