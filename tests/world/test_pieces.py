"""What may be sharded; that it learns the same is tested in ``test_together.py``."""

from __future__ import annotations

import pytest
from torch import nn

from sapwood.errors import ConfigError
from sapwood.world import pieces


def test_only_a_frozen_backbone_is_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "size", lambda: 2)
    trained, frozen = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
    pieces.check_frozen(trained)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as accelerate's launcher does
    pieces.check_frozen(frozen)
    with pytest.raises(ConfigError, match="frozen backbone, and this method trains its weights"):
        pieces.check_frozen(trained)


def test_one_process_shards_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert not pieces.asked()
    pieces.check_frozen(nn.Linear(2, 2))
