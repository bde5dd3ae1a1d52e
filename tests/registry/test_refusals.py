"""What does not go together is refused before a state is made, and what is not needed is not computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sapwood.errors import ConfigError
from sapwood.network import Network
from sapwood.progress import Progress

from .helpers import FAST, Rounds, create


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("clora+mib", {"settings": {"lr": 1e-3}}, "settings are given by part, and 'lr' is none; parts: adapter, "),
        (
            "clora+mib",
            {"settings": {"head": {"background": "unknown"}}},
            "objective mib works with head.background=class",
        ),
        ("clora+dkd", {"settings": {"head": {"stem": "per_task"}}}, "objective dkd works with head.stem=shared"),
        ("clora+ssul", {"settings": {"head": {"background": "class"}}}, "works with head.background=unknown"),
        ("clora+sats", {"backbone": "random:resnet-tiny", "image_size": (32, 32)}, "random:resnet-tiny shows none"),
        ("c-lora+mib", {"backbone": "random:resnet-tiny", "image_size": (32, 32)}, "take full, lora, none"),
    ],
)
def test_before_a_state_is_made(method: str, options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        create(tmp_path / "state", method, "segmentation", **options)
    assert said in str(caught.value)
    assert not (tmp_path / "state").exists()


def test_the_first_round_computes_nothing_for_a_teacher(
    rounds: Callable[[str], Rounds], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[frozenset[str]] = []
    forward = Network.forward

    def listening(self: Network, images: Any) -> Any:
        asked.append(self.watched)
        return forward(self, images)

    monkeypatch.setattr(Network, "forward", listening)
    folders = rounds("segmentation")
    for method, first, later in (
        ("clora+plop", frozenset[str](), {"teacher", "maps", "grid"}),
        ("clora+ssul", {"saliency"}, None),  # later rounds go through the head alone
    ):
        asked.clear()
        learner = create(tmp_path / method, method).learn(folders.first, training={**FAST, "epochs": 1})
        assert set(asked) == {frozenset(first)}
        asked.clear()
        learner.learn(folders.second)
        assert later is None or frozenset(later) in asked


def test_a_head_that_training_has_fitted_looks_at_a_part_of_the_pictures_once_more(
    picture_folder: Callable[..., Path], tmp_path: Path
) -> None:
    begun: dict[str, int] = {}

    class Listening(Progress):
        def start(self, what: str, total: int, done: int = 0) -> None:
            begun[what] = total

    many = picture_folder(["ant", "bee"], 100, name="many")
    options = {"training": {**FAST, "epochs": 1, "validation": 0.0}, "progress": Listening()}
    create(tmp_path / "gradient", "seq-lora").learn(many, **options)
    assert begun["features"] == 50
    create(tmp_path / "statistics", "seq-lora+ridge").learn(many, **options)
    assert begun["features"] == 200
