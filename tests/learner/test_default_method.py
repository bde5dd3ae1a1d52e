"""Which method a new state takes where none is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sapwood.backbones import create_backbone
from sapwood.kinds import KINDS
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


def test_sums_that_would_be_large_are_not_the_default() -> None:
    """9.4 MB of sums for a ViT-S, 38 MB for a ViT-B."""
    wide = create_backbone("random:dinov2-tiny")
    classification = KINDS["classification"]
    assert classification.default_for(wide) == "ridge-4"
    for width, method in ((384, "ridge-4"), (768, "ridge")):
        wide.info = replace(wide.info, dim=width)
        assert classification.default_for(wide) == method
