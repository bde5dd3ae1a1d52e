"""Attention and feature maps of every family against the models of the libraries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sapwood.backbones.catalogue import plan_backbone
from sapwood.network import Network
from sapwood.observing import observing

from .helpers import FAMILIES, TINY, backbone_named, images, network_on


@torch.no_grad()
def eager_attention(network: Network, pictures: Tensor) -> list[Tensor]:
    """Softmax maps of all blocks as the library's own plain attention gives them, in an order of its own."""
    backbone = network.backbone
    backbone.set_attention("eager")
    found: list[Tensor] = []
    if backbone.info.family == "timm":
        modules = [block.attn.attn_drop for block in backbone.model.blocks]
    else:
        places = {site.module.rpartition(".")[0]: None for site in backbone.sites if site.part == "q"}
        modules = [backbone.get_submodule(place) for place in places]

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        found.append(output[1] if isinstance(output, tuple) else output)

    handles = [module.register_forward_hook(keep) for module in modules]
    network.tokens(pictures)
    for handle in handles:
        handle.remove()
    backbone.set_attention("sdpa")
    return found


def block_indices(name: str, network: Network) -> list[int]:
    """Written out: quarters of 2, 4 and 6 blocks, global ones of SAM, the last of each stage (1, 2, 1, 1 blocks)."""
    if "mit" in name:
        return [0, 2, 3, 4]
    return {2: [0, 1], 4: [0, 1, 2, 3], 6: [1, 2, 4, 5]}[network.backbone.info.depth]


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_maps_are_those_of_plain_attention(name: str) -> None:
    network = network_on(name)
    pictures = images(network)
    expected = eager_attention(network, pictures)
    prefix = network.backbone.info.prefix_tokens
    with torch.no_grad():
        bare, _ = network.tokens(pictures)
        tokens, _ = network.tokens(pictures, frozenset({"attention", "saliency"}))
    assert torch.equal(tokens.patches, bare.patches)
    assert (bare.attention, bare.saliency) == ((), None)
    wanted = [expected[index][..., prefix:, :] for index in block_indices(name, network)]
    assert len(tokens.attention) == len(wanted)
    for found, maps in zip(tokens.attention, wanted, strict=True):
        torch.testing.assert_close(found, maps.view_as(found), atol=1e-5, rtol=0)
        torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]), atol=1e-5, rtol=0)
        assert found.std() > 1e-3  # not uniform
    last = expected[-1].view(len(pictures), -1, *expected[-1].shape[-2:])
    rows = last[:, :, :1] if network.backbone.class_token else last[:, :, prefix:]
    assert network.backbone.class_token == (prefix > 0)
    shares = rows[..., prefix:].mean((1, 2))
    height, width = tokens.grid if "mit" not in name else tokens.levels[-1].shape[-2:]
    assert tokens.saliency is not None
    torch.testing.assert_close(tokens.saliency, shares.view(-1, height, width), atol=1e-5, rtol=0)
    with torch.no_grad():
        alone, _ = network.tokens(pictures, frozenset({"saliency"}))
    assert alone.attention == ()
    assert alone.saliency is not None
    torch.testing.assert_close(alone.saliency, tokens.saliency, atol=1e-6, rtol=0)
    with network.bare(), torch.no_grad():
        unadapted, _ = network.tokens(pictures, frozenset({"attention"}))
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(tokens.attention, unadapted.attention, strict=True))


@pytest.mark.parametrize("name", ["random:dinov2-tiny", "random:clip-tiny", "random:siglip-tiny", "random:mit-tiny"])
def test_the_same_from_the_librarys_output_attentions(name: str) -> None:
    network = network_on(name)
    pictures = images(network)
    prefix, backbone = network.backbone.info.prefix_tokens, network.backbone
    options = {} if "mit" in name or "dinov2" in name else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        tokens, _ = network.tokens(pictures, frozenset({"attention"}))
        backbone.set_attention("eager")
        output = backbone.model(pixel_values=network.pixels(pictures), output_attentions=True, **options)
    for found, index in zip(tokens.attention, block_indices(name, network), strict=True):
        torch.testing.assert_close(found, output.attentions[index][:, :, prefix:], atol=1e-5, rtol=0)


def test_quarters_of_the_depth() -> None:
    def blocks(name: str) -> list[int]:
        return [block.query.block for block in plan_backbone(name).attention_blocks()]

    assert blocks("random:dinov2-s14") == [2, 5, 8, 11]
    assert blocks("sam-vit-base") == [2, 5, 8, 11]
    assert blocks("sam-vit-large") == [5, 11, 17, 23]
    assert blocks("sam-vit-huge") == [7, 15, 23, 31]
    assert blocks("mit-b2") == [2, 6, 12, 15]


def test_windowed_blocks_show_no_attention() -> None:
    backbone = backbone_named("random:sam-tiny")
    backbone.model.vision_encoder.layers[1].window_size = 3
    assert [block.query.block for block in backbone.attention_blocks()] == [0, 2, 3]


@pytest.mark.parametrize("name", [*TINY, "random:resnet-tiny"])
def test_maps_are_the_hidden_states_and_the_classifiers_input(name: str) -> None:
    network = network_on(name, "none" if "resnet" in name else "lora")
    pictures = images(network)
    backbone, prefix = network.backbone, network.backbone.info.prefix_tokens
    with torch.no_grad(), network.watching({"maps", "grid"}):
        outputs = network(pictures)
        tokens, _ = network.tokens(pictures)
        *encoder, decoded = outputs.maps
        weight, bias = network.head.classifier.weight, network.head.classifier.get_parameter("bias")
        logits = torch.einsum("bchw,kc->bkhw", decoded, weight) + bias[:, None, None]
    assert outputs.grid_logits is not None
    torch.testing.assert_close(outputs.grid_logits, logits, atol=1e-4, rtol=1e-5)
    big = nn.functional.interpolate(outputs.grid_logits, outputs.logits.shape[2:], mode="bilinear")
    torch.testing.assert_close(outputs.logits, big, atol=1e-4, rtol=1e-5)
    assert decoded.min() == 0  # behind the ReLU
    if tokens.levels:
        assert [maps.shape for maps in encoder] == [level.shape for level in tokens.levels]
        for maps, level in zip(encoder, tokens.levels, strict=True):
            assert torch.equal(maps.relu() if "resnet" in name else maps, level)
        return
    height, width = tokens.grid
    assert len(encoder) == backbone.info.depth
    with torch.no_grad():
        options = {} if "dinov2" in name or "sam" in name else {"interpolate_pos_encoding": True}
        stock = backbone.model(pixel_values=network.pixels(pictures), output_hidden_states=True, **options)
    for maps, hidden in zip(encoder, stock.hidden_states[1:], strict=True):
        rows = hidden.flatten(1, 2) if hidden.ndim == 4 else hidden[:, prefix:]
        for row in range(height):
            for column in range(width):
                assert torch.equal(maps[:, :, row, column], rows[:, row * width + column])


def test_keys_that_stand_for_many_cells_are_brought_to_the_queries_grid() -> None:
    backbone = backbone_named("random:mit-tiny")
    generator = torch.Generator().manual_seed(1)
    for parameter in backbone.parameters():
        parameter.data.normal_(std=0.3, generator=generator)
    blocks = backbone.attention_blocks()
    assert [(block.heads, block.level, block.reduction) for block in blocks] == [
        (1, 0, 8),
        (2, 1, 4),
        (2, 2, 2),
        (3, 3, 1),
    ]
    backbone.attention_blocks = lambda: blocks[:3]  # type: ignore[method-assign]
    pixels = torch.randn(1, 3, 128, 64, generator=generator)
    with torch.no_grad(), observing(backbone, frozenset({"attention", "saliency"})) as observed:
        tokens = backbone(pixels)
    tokens = observed(tokens)
    assert [tuple(maps.shape) for maps in tokens.attention] == [(1, 1, 512, 8), (1, 2, 128, 8), (1, 2, 32, 8)]
    assert tokens.saliency is not None
    assert tokens.saliency.shape == (1, 8, 4)
    keys = tokens.attention[-1].mean((1, 2)).view(4, 2).double().numpy()
    np.testing.assert_allclose(tokens.saliency[0].numpy(), doubled(doubled(keys.T).T), atol=1e-6)


def doubled(values: np.ndarray) -> np.ndarray:
    """Columns twice as many: pixel centres at halves, edges repeated."""
    places = (np.arange(2 * values.shape[1]) + 0.5) / 2 - 0.5
    return np.stack([np.interp(places, np.arange(values.shape[1]), row) for row in values])
