"""Where the disk is full of what other settings have left."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from sapwood.hidden_cache import HiddenCache

from .helpers import COUNT, Heard, feed, network, pictures


def test_old_settings_make_room_and_this_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SAPWOOD_CACHE", str(folder))
    old = HiddenCache({"backbone": "another"}, (5, 384), torch.float32)
    for number in range(200):
        old.put(str(number), torch.zeros(5, 384))
    size = 200 * old.bytes_each

    def usage(path: Path) -> object:
        used = sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
        return type("usage", (), {"free": size - used})

    monkeypatch.setattr("sapwood.hidden_cache.shutil.disk_usage", usage)
    feed(network(), pictures()).fill(heard := Heard())
    assert len(heard.notes) == 1
    assert "no space left" in heard.notes[0]
    then = time.time() - 2 * 24 * 3600
    os.utime(old.folder, (then, then))
    kept = feed(network(), pictures())
    kept.fill(heard := Heard())
    assert heard.notes[0] == f"removed {size / 1e6:.1f} MB of hidden states of other settings, unused for a day"
    assert heard.notes[1].startswith(f"hidden states of {COUNT} views (0 were there)")
    assert not old.folder.exists()
    assert kept.cache is not None
    os.utime(kept.cache.folder, (then, then))
    next(iter(kept.batches(1, 0)))
    assert kept.cache.folder.stat().st_mtime > then + 3600  # an epoch uses it
    feed(network(), pictures()).fill(again := Heard())
    assert again.notes == [heard.notes[1].replace("(0 were", f"({COUNT} were")]
