"""A half-learned round goes on in the precision that it began in, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sapwood.errors import ConfigError
from sapwood.learner import Learner
from sapwood.progress import Progress


class Stopped(Progress):
    """Stops at the second step."""

    steps = 0

    def advance(self, units: int, **facts: float) -> None:
        self.steps += bool(facts)
        if self.steps == 2:
            raise KeyboardInterrupt


def test_a_round_is_not_of_two_precisions(
    tmp_path: Path, picture_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"training": {"epochs": 1, "batch_size": 2, "checkpoint_seconds": 1e-9}}
    learner = Learner.create(
        tmp_path / "state", backbone="random:dinov2-tiny", method="seq-lora", image_size=28, settings=settings
    )
    data, here = picture_folder(["ant", "bee"], 4), "fp32"
    monkeypatch.setattr("sapwood.assembly.resolve_precision", lambda wanted, device: here)
    with pytest.raises(KeyboardInterrupt):
        learner.learn(data, progress=Stopped())
    here = "bf16"
    with pytest.raises(ConfigError, match=r"began in fp32, and would go on in bf16: .* with --restart"):
        Learner.open(tmp_path / "state").learn(data)
    here = "fp32"
    assert Learner.open(tmp_path / "state").learn(data).classes_ == ("ant", "bee")
