"""Which method a new state takes where none is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from sapwood.learner import Learner


@pytest.mark.parametrize(
    ("backbone", "method", "blocks"),
    [
        ("random:dinov2-tiny", "ridge-4", "-4:"),
        ("random:clip-tiny", "ridge-4", "-4:"),
        ("random:siglip-tiny", "ridge-4", "-4:"),
        ("random:mit-tiny", "ridge", "pooled"),
        ("random:resnet-tiny", "ridge", "pooled"),
        ("random:sam-tiny", "ridge", "pooled"),
    ],
)
def test_the_default_goes_with_the_backbone(tmp_path: Path, backbone: str, method: str, blocks: str) -> None:
    record = Learner.create(tmp_path / "state", backbone=backbone).record
    assert (record["method"], record["settings"]["head"]["blocks"]) == (method, blocks)


def test_another_head_reads_what_it_reads(tmp_path: Path) -> None:
    record = Learner.create(tmp_path / "state", backbone="random:dinov2-tiny", head="prototype").record
    assert (record["parts"]["head"], record["settings"]["head"]["blocks"]) == ("prototype", "pooled")
