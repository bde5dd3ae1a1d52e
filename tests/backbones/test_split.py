"""A chain of blocks that is left in the middle and taken up again gives what it gives in one go."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from sapwood.backbones import Backbone, create_backbone
from sapwood.backbones.families import FAMILIES
from sapwood.backbones.split import Split, run_until
from sapwood.errors import ConfigError


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_halves_are_the_whole(family: str, attention: str, drawn: Callable[..., Backbone]) -> None:
    backbone = drawn(f"random:{family}-tiny")
    assert isinstance(backbone, Split)
    backbone.set_attention(attention)
    patch = backbone.info.patch
    images = torch.randn(3, 3, 2 * patch, 3 * patch, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        whole = backbone(images)
        for blocks in range(backbone.info.depth):
            hidden = backbone.prefix(images, blocks)
            assert hidden.shape == (3, backbone.info.prefix_tokens + 6, backbone.info.dim)
            tokens = backbone.resume(hidden, blocks, (2, 3))
            assert torch.equal(tokens.pooled, whole.pooled)
            assert torch.equal(tokens.patches, whole.patches)
            assert tokens.grid == whole.grid
        assert torch.equal(backbone(images).pooled, whole.pooled)  # nothing was left hanging
    with pytest.raises(ConfigError, match="do not divide"):
        backbone.prefix(images[:, :, 1:], 1)


def test_only_the_blocks_asked_for_run() -> None:
    backbone = create_backbone("random:dinov2-tiny")
    assert isinstance(backbone, Split)
    ran: list[int] = []
    for index, path in enumerate(backbone.maps):
        backbone.get_submodule(path).register_forward_hook(lambda *_, index=index: ran.append(index))
    hidden = backbone.prefix(torch.zeros(1, 3, 14, 14), 1)
    assert ran == [0]
    backbone.resume(hidden, 1, (1, 1))
    assert ran == list(range(backbone.info.depth))


def test_a_siglip_without_its_pooling_head(drawn: Callable[..., Backbone]) -> None:
    backbone = drawn("random:siglip-tiny")
    backbone.model.use_head = False
    del backbone.model.head
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        assert torch.equal(backbone.resume(backbone.prefix(images, 1), 1, (2, 2)).pooled, backbone(images).pooled)


def test_a_block_that_is_never_reached() -> None:
    model = create_backbone("random:vit-tiny").model
    with pytest.raises(ValueError, match="does not come"):
        run_until(model, torch.nn.Identity(), torch.zeros(1, 3, 224, 224), interpolate_pos_encoding=True)
