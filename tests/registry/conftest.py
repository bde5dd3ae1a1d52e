from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest

from sapwood.learner import Learner

from .helpers import Rounds, learn_two

_ROUNDS: list[Rounds] = []
_LEARNED: dict[str, Learner] = {}


@pytest.fixture(autouse=True)
def quickly(settled: None) -> None: ...


@pytest.fixture
def rounds(picture_folder: Callable[..., Path]) -> Rounds:
    """The same folders for all tests here; made by the first that asks."""

    def make(classes: Iterable[str] | Mapping[str, int], per_class: int, name: str, seed: int = 0) -> Path:
        return picture_folder(classes, per_class, name=name, seed=seed)

    if not _ROUNDS:
        _ROUNDS.append(
            Rounds(
                first=make(["ant", "bee"], 12, "first"),
                second=make(["cat", "dog"], 12, "second"),
                mixed=make({"bee": 5, "eel": 6}, 0, "mixed", seed=1),
                other=make(["ant", "bee", "cat", "dog"], 2, "other", seed=2),
            )
        )
    return _ROUNDS[0]


@pytest.fixture
def learned(rounds: Rounds, tmp_path: Path) -> Callable[[str], Learner]:
    """A learner that has learned both rounds by a method; tests may look at it and must not teach it."""

    def give(method: str) -> Learner:
        if method not in _LEARNED:
            _LEARNED[method] = learn_two(tmp_path / "state", method, rounds)
        return _LEARNED[method]

    return give
