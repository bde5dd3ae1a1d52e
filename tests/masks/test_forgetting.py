"""What an objective is for: classes that later rounds call background stay, or are forgotten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sapwood.learner import Learner
from sapwood.mask_evaluation import MaskEvaluation

Folders = Callable[..., Path]
TRAINING = {"epochs": 12, "batch_size": 8, "precision": "fp32", "lr": 1e-2, "validation": 0.0}
ROUNDS = (("road", "car"), ("tree",), ("sign",))
NAMES = [name for classes in ROUNDS for name in classes]


@pytest.fixture
def measured(tmp_path: Path, mask_folder: Folders) -> dict[str, list[MaskEvaluation]]:
    """What is measured after each round. All pictures show all classes; a round labels its own only."""
    folders = [
        mask_folder(
            classes, 24, also=[name for name in NAMES if name not in classes], name=f"round-{index}", seed=index
        )
        for index, classes in enumerate(ROUNDS)
    ]
    test = mask_folder(NAMES, 8, name="test", seed=7)
    found = {}
    for method in ("clora+mib", "clora"):
        learner = Learner.create(
            tmp_path / method,
            backbone="random:dinov2-tiny",
            method=method,
            kind="segmentation",
            image_size=(28, 42),
            settings={"training": TRAINING},
        )
        found[method] = [learner.learn(folder).evaluate(test) for folder in folders]
    return found


def test_mib_keeps_what_finetuning_forgets_round_by_round(measured: dict[str, list[MaskEvaluation]]) -> None:
    kept, forgot = measured["clora+mib"], measured["clora"]
    assert kept[0].confusion == forgot[0].confusion  # the objectives do not differ in a first round
    assert min(kept[0].per_class[name] or 0 for name in ROUNDS[0]) > 0.25
    best = {name: kept[0].per_class[name] or 0 for name in ROUNDS[0]}
    for index, classes in enumerate(ROUNDS[1:], 1):
        now, bare = kept[index].per_class, forgot[index].per_class
        for name, share in best.items():
            assert (now[name] or 0) > 0.9 * share, name
            assert (bare[name] or 0) < 0.05, name
        best |= {name: now[name] or 0 for name in classes}
        assert all(best[name] > 0.6 for name in classes)
        assert all((bare[name] or 0) > 0.2 for name in classes)  # it did learn: what went is forgotten
    assert (kept[-1].miou or 0) > (forgot[-1].miou or 0) + 0.3
    # Finetuning draws what it was taught to call background as background, or as the one class that it still knows.
    counts = np.array(forgot[-1].confusion)
    assert counts[1:4, [0, 4]].sum() > 0.95 * counts[1:4].sum()
