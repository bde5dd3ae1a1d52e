"""Settings of training steps, given to a method that makes none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sapwood.learner import Learner


@pytest.mark.parametrize(
    ("method", "training", "said"),
    [
        ("ridge", {"epochs": 30, "lr": 0.01}, "changes nothing: epochs 30, lr 0.01"),
        ("ncm", {"validation": 0.2, "batch_size": 4, "workers": 0}, None),
        ("seq-lora", {"epochs": 30}, None),
        ("lora+ranpac", {}, None),
    ],
)
def test_what_is_never_used_is_said(
    method: str, training: dict[str, Any], said: str | None, tmp_path: Path, picture_folder: Callable[..., Path]
) -> None:
    learner = Learner.create(tmp_path / "state", backbone="random:dinov2-tiny", method=method, image_size=28)
    remarks = learner.announce(picture_folder(["ant", "bee"], 4), training=training).remarks
    found = [remark.partition("so this ")[2] for remark in remarks if "step by step" in remark]
    assert found == ([said] if said else [])
