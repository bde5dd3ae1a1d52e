from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sapwood.learner import Learner

from .helpers import Rounds, global_random_state, learn_two

_ROUNDS: dict[str, Rounds] = {}
_LEARNED: dict[tuple[str, str], Learner] = {}
_RANDOM: dict[tuple[str, str], list[tuple[Any, ...]]] = {}


@pytest.fixture
def rounds(picture_folder: Callable[..., Path], mask_folder: Callable[..., Path]) -> Callable[[str], Rounds]:
    """The folders of a kind, the same for all tests here; made by the first that asks."""

    def pictures() -> Rounds:
        return Rounds(
            classes=("ant", "bee", "cat", "dog"),
            first=picture_folder(["ant", "bee"], 12, name="first"),
            second=picture_folder(["cat", "dog"], 12, name="second"),
            mixed=picture_folder({"bee": 5, "eel": 6}, name="mixed", seed=1),
            other=picture_folder(["ant", "bee", "cat", "dog"], 2, name="other", seed=2),
            single=picture_folder(["ant"], 3, name="one-class"),
            little=picture_folder(["bee", "cat"], 1, name="one-picture"),
        )

    def masks() -> Rounds:
        return Rounds(
            classes=("background", "ant", "bee", "cat", "dog"),
            first=mask_folder(["ant", "bee"], 12, name="first"),
            second=mask_folder(["cat", "dog"], 12, also=["bee"], name="second"),
            mixed=mask_folder({"bee": 5, "eel": 6}, 8, also=["ant"], name="mixed", seed=1),
            other=mask_folder(["ant", "bee", "cat", "dog"], 6, name="other", seed=2),
            single=mask_folder(["ant"], 3, name="one-class"),
            little=mask_folder(["bee", "cat"], 1, name="one-picture"),
        )

    def give(kind: str) -> Rounds:
        if kind not in _ROUNDS:
            _ROUNDS[kind] = {"classification": pictures, "segmentation": masks}[kind]()
        return _ROUNDS[kind]

    return give


@pytest.fixture
def learned(rounds: Callable[[str], Rounds], tmp_path: Path) -> Callable[[str, str], Learner]:
    """A learner that has learned both rounds by a method; tests may look at it and must not teach it."""

    def give(method: str, kind: str) -> Learner:
        if (method, kind) not in _LEARNED:
            folders, before = rounds(kind), global_random_state()
            _LEARNED[method, kind] = learn_two(tmp_path / "state", method, folders, kind)
            _RANDOM[method, kind] = [before, global_random_state()]
        return _LEARNED[method, kind]

    return give


@pytest.fixture
def global_randomness(learned: Callable[[str, str], Learner]) -> Callable[[str, str], list[tuple[Any, ...]]]:
    """The state of all global generators before and after those two rounds."""

    def give(method: str, kind: str) -> list[tuple[Any, ...]]:
        learned(method, kind)
        return _RANDOM[method, kind]

    return give
