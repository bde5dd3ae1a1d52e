from __future__ import annotations

from pathlib import Path

import pytest

from .helpers import ROUNDS, Folders, learn


@pytest.fixture
def rounds(picture_folder: Folders) -> list[Path]:
    return [picture_folder(counts, name=f"round{number}", seed=number) for number, counts in enumerate(ROUNDS)]


@pytest.fixture
def one_round(tmp_path: Path, picture_folder: Folders) -> Path:
    learn(tmp_path / "state", "ncm", {}, picture_folder(["ant", "bee"], 2))
    return tmp_path / "state"
