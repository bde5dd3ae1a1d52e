"""The choice between two ways of computing attention: measured once, remembered, and without effect on the values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sapwood.backbones import attention, create_backbone
from sapwood.backbones.attention import attending, fastest_attention
from sapwood.learner import Learner
from sapwood.progress import Progress

TINY = "random:dinov2-tiny"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAPWOOD_CACHE", str(tmp_path))
    return tmp_path / "attention.json"


def test_measured_once_for_a_shape(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = create_backbone(TINY, 28)
    found = fastest_attention(backbone, 4)
    assert found in ("sdpa", "eager")
    known = json.loads(cache.read_text())
    assert list(known.values()) == [found]
    assert "4x2x5x" in next(iter(known))  # pictures, heads, class token and 2 x 2 patches
    monkeypatch.setattr(attention, "_measured", lambda *shape, like: pytest.fail("it is known"))
    assert fastest_attention(backbone, 4) == found


@pytest.mark.parametrize(("slow", "answer"), [("_plain", "sdpa"), ("fused", "eager")])
def test_takes_the_faster_one(cache: Path, slow: str, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = {"_plain": attention._plain, "fused": attention.F.scaled_dot_product_attention}

    def slowed(*parts: torch.Tensor) -> torch.Tensor:
        for _ in range(50):
            ways[slow](*parts)
        return ways[slow](*parts)

    if slow == "_plain":
        monkeypatch.setattr(attention, "_plain", slowed)
    else:
        monkeypatch.setattr(attention.F, "scaled_dot_product_attention", slowed)
    assert fastest_attention(create_backbone(TINY, 28), 4) == answer


@pytest.mark.parametrize("content", ["{", "[]", '{"other": 1}'])
def test_a_damaged_memory_is_made_anew(cache: Path, content: str) -> None:
    cache.write_text(content)
    fastest_attention(create_backbone(TINY, 28), 4)
    assert any(value in ("sdpa", "eager") for value in json.loads(cache.read_text()).values())


def test_blocks_of_several_shapes_stay_fused(cache: Path) -> None:
    assert fastest_attention(create_backbone("random:mit-tiny", 64), 4) == "sdpa"
    assert not cache.exists()


def test_values_agree_and_the_fused_way_comes_back() -> None:
    backbone = create_backbone(TINY, 28)
    images = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        fused = backbone(images).pooled
        with attending(backbone, "eager"):
            assert backbone.model.config._attn_implementation == "eager"
            plain = backbone(images).pooled
        assert backbone.model.config._attn_implementation == "sdpa"
        assert torch.equal(backbone(images).pooled, fused)
    assert torch.allclose(plain, fused, atol=1e-6)
    with attending(backbone, "sdpa"):
        assert backbone.model.config._attn_implementation == "sdpa"


def test_a_half_learned_round_goes_on_as_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture_folder: Callable[..., Path]
) -> None:
    used: list[str] = []

    class Watching(Progress):
        def advance(self, units: int, **facts: float) -> None:
            if facts:  # a step
                used.append(network.backbone.model.config._attn_implementation)

    class Stopped(Watching):
        def advance(self, units: int, **facts: float) -> None:
            super().advance(units, **facts)
            if len(used) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr("sapwood.rounds.fastest_attention", lambda backbone, batch_size: "eager")
    settings = {"training": {"epochs": 1, "batch_size": 2, "precision": "fp32", "checkpoint_seconds": 1e-9}}
    learner = Learner.create(tmp_path / "state", backbone=TINY, method="seq-lora", image_size=28, settings=settings)
    data = picture_folder(["ant", "bee"], 4)
    network = learner.network
    with pytest.raises(KeyboardInterrupt):
        learner.learn(data, progress=Stopped())
    monkeypatch.setattr("sapwood.rounds.fastest_attention", lambda backbone, batch_size: "sdpa")
    learner = Learner.open(tmp_path / "state")
    network = learner.network
    learner.learn(data, progress=Watching())
    assert used == ["eager"] * 5  # two of four steps, the second once more
    assert network.backbone.model.config._attn_implementation == "sdpa"
