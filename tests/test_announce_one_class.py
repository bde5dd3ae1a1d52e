"""A round of a single class, whose loss over the round's own classes has nothing to say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sapwood.learner import Learner

Folders = Callable[..., Path]
TINY = "random:dinov2-tiny"
FAST = {"epochs": 1, "batch_size": 8, "precision": "fp32", "weight_decay": 0.0}


@pytest.mark.parametrize(
    ("method", "scope", "classes", "warns"),
    [
        ("seq-lora", "own", 1, True),
        ("seq-lora+ridge", "own", 1, True),
        ("seq-lora", "own", 2, False),
        ("seq-lora", "seen", 1, False),
        ("ncm", "own", 1, False),
    ],
)
def test_a_round_of_one_class_may_teach_nothing(
    method: str, scope: str, classes: int, warns: bool, tmp_path: Path, picture_folder: Folders
) -> None:
    settings = {"objective": {"scope": scope}}
    learner = Learner.create(tmp_path / "state", backbone=TINY, method=method, image_size=28, settings=settings)
    first = picture_folder(["ant"], 6, name="first")
    # Nor would any other loss have something to compare with.
    assert not any(remark.startswith("a single class") for remark in learner.announce(first).remarks)
    learner.learn(first, training=FAST)
    said = learner.announce(picture_folder(["bee", "cat"][:classes], 6, name="second"))
    assert sum(remark.startswith("a single class: the cross entropy") for remark in said.remarks) == warns
    if warns and method == "seq-lora":
        before = learner.network.adapter.state()[0]
        learner.learn(tmp_path / "second", training=FAST)
        after = learner.network.adapter.state()[0]
        assert all(torch.equal(before[name], after[name]) for name in before)
