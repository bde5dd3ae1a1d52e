"""timm's vision transformers, where timm can be imported; where it cannot, the line that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sapwood.backbones import create_backbone
from sapwood.errors import BackboneError, UnknownName

try:
    import timm
except Exception:  # missing, or a torchvision that does not fit torch
    timm = None

MODEL = "test_vit.r160_in1k"  # 0.4 million parameters, made by timm for tests
needs_timm = pytest.mark.skipif(timm is None, reason="timm cannot be imported (extra: timm)")


@pytest.mark.skipif(timm is not None, reason="timm is there")
def test_without_timm_the_remedy_is_said() -> None:
    with pytest.raises(BackboneError, match=r"timm cannot be imported \(.+\); pip install 'sapwood\[timm\]'$"):
        create_backbone(f"timm:{MODEL}")


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """A cache of the hub that holds the model with its classifier, as timm publishes it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = timm.create_model(MODEL, pretrained=False).eval()
    repo = tmp_path / f"models--timm--{MODEL}"
    snapshot = repo / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("a" * 40)
    (snapshot / "config.json").write_text("{}")
    save_file(model.state_dict(), snapshot / "model.safetensors")
    return model


@needs_timm
def test_features_and_sites_are_those_of_timm(cached: torch.nn.Module) -> None:
    backbone = create_backbone(f"timm:{MODEL}")
    assert (backbone.info.family, backbone.info.revision, backbone.info.dim) == ("timm", "a" * 40, 64)
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = cached.forward_features(images)
        tokens = backbone(images)
        assert torch.equal(tokens.patches, hidden[:, 1:])
        assert torch.equal(tokens.pooled, hidden[:, 0])
        assert backbone(images[:, :, :48, :80]).grid == (3, 5)
        backbone.set_attention("eager")
        torch.testing.assert_close(backbone(images).pooled, tokens.pooled, atol=1e-5, rtol=0)
    q, k, v, *_ = backbone.sites
    assert [site.rows for site in (q, k, v)] == [(0, 64), (64, 128), (128, 192)]
    assert {site.module for site in (q, k, v)} == {"model.blocks.0.attn.qkv"}
    assert len(backbone.sites) == 6 * backbone.info.depth


@needs_timm
def test_names_that_timm_has_not_or_that_are_no_vit(cached: torch.nn.Module) -> None:
    with pytest.raises(UnknownName, match=r"timm has no model 'test_vitt'\. Did you mean 'timm:test_vit"):
        create_backbone("timm:test_vitt")
    with pytest.raises(BackboneError, match="timm's resnet18 cannot be used"):
        create_backbone("timm:resnet18")
    with pytest.raises(BackboneError, match="only plain vision transformers are known"):
        create_backbone("timm:eva02_tiny_patch14_224")
