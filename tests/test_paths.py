"""Home folders in paths, and folders that are merely called like one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sapwood.data.sources import read_data
from sapwood.errors import DataError


def test_a_folder_that_begins_with_a_tilde(
    picture_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture_folder(["ant", "bee"], 2).rename(tmp_path / "~march-of-nobody")
    monkeypatch.chdir(tmp_path)
    assert read_data("~march-of-nobody").classes == ("ant", "bee")
    with pytest.raises(DataError, match="no such file or folder: ~april-of-nobody"):
        read_data("~april-of-nobody")


def test_a_server_finds_a_state_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = pytest.importorskip("sapwood.serve.settings")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert settings.ServeSettings("~/birds").state == tmp_path / "birds"
