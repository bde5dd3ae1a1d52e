"""Heads of sums under adapters that change their logits: what is reported and calibrated is what is predicted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sapwood import fitting
from sapwood.heads.calibration import Chosen, chosen_beside
from sapwood.learner import Learner

TRAINING = {"epochs": 1, "batch_size": 8, "precision": "fp32", "validation": 0.25}


def learner_of(path: Path, method: str, head: str) -> Learner:
    """Methods leave DualLoRA's guess of the round out before these heads; it is asked for."""
    settings = {"adapter": {"calibration": 1.0}} if method == "dual-lora" else {}
    return Learner.create(
        path, backbone="random:dinov2-tiny", method=method, head=head, image_size=28, settings=settings
    )


@pytest.mark.parametrize("head", ["ridge", "prototype"])
@pytest.mark.parametrize("method", ["dual-lora", "color"])
def test_the_temperature_is_that_of_the_predictions(
    method: str, head: str, tmp_path: Path, picture_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def spied(store: Any, predict: Any, *, what: str, **options: Any) -> Tensor:
        logits = run_pass(store, predict, what=what, **options)
        seen.extend([logits] * (what == "validation"))
        return logits

    run_pass = fitting.run_pass
    monkeypatch.setattr(fitting, "run_pass", spied)
    learner = learner_of(tmp_path / "state", method, head)
    for number, names in enumerate((["ant", "bee"], ["cat", "dog"])):
        learner.learn(picture_folder(names, 20, name=f"round{number}"), training=TRAINING)
    targets = torch.tensor([2] * 5 + [3] * 5)
    made: Any = learner.network.head
    assert len(seen) == 2
    assert seen[-1].shape == (10, 4)
    right = int((seen[-1].argmax(1) == targets).sum())
    assert learner.record["tasks"][-1]["validation_accuracy"] == pytest.approx(right / 10)
    first = chosen_beside(Chosen(1.0, 0), seen[0], targets - 2, fewest=1)
    assert first is not None
    second = chosen_beside(first, seen[1], targets, fewest=1)
    assert second is not None
    assert made.temperature == pytest.approx(second.temperature)
    assert made.calibrated
    assert made.count.tolist() == [20] * 4, "held-out pictures have joined"


def test_what_was_not_held_out_calibrates_nothing(tmp_path: Path, picture_folder: Callable[..., Path]) -> None:
    learner = learner_of(tmp_path / "state", "dual-lora", "ridge")
    learner.learn(picture_folder(["ant", "bee"], 4), training=TRAINING)
    made: Any = learner.network.head
    assert not made.calibrated
    assert made.count.tolist() == [4, 4]


@pytest.mark.parametrize("method", ["dual-lora", "color"])
def test_no_temperature_is_guessed_where_the_adapter_changes_the_logits(
    method: str, tmp_path: Path, picture_folder: Callable[..., Path]
) -> None:
    """Classes one by one: features drawn for the head alone would say nothing of what is predicted."""
    learner = learner_of(tmp_path / "state", method, "ridge")
    for name in ("ant", "bee"):
        learner.learn(picture_folder([name], 8, name=name), training=TRAINING)
    made: Any = learner.network.head
    assert (made.temperature, made.calibrated, made.told) == (1.0, False, 0)
