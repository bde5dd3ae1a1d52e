"""SAM's image encoder against the stock model of transformers, at the size of its tables and at others."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sapwood.adapters.lora import Lora, LoraConfig
from sapwood.backbones import Backbone, create_backbone, fingerprint
from sapwood.errors import ConfigError
from sapwood.heads.linear import LinearConfig, LinearHead
from sapwood.network import Network

GLOBAL = 2


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A whole SAM, tiny, as save_pretrained leaves it; its image encoder is 4 x 4 patches of 16 px."""
    from transformers import SamConfig, SamModel

    width = 16
    config = SamConfig(
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 64,
            "window_size": 3,
            "output_channels": width,
            "global_attn_indexes": [GLOBAL],
            "num_pos_feats": 8,
        },
        prompt_encoder_config={"hidden_size": width, "image_size": 64},
        mask_decoder_config={
            "hidden_size": width,
            "mlp_dim": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
    )
    model = SamModel(config)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3, generator=generator)
    model.save_pretrained(tmp_path / "sam")
    return tmp_path / "sam"


def images(side: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(2))


def stock(folder: Path) -> nn.Module:
    from transformers import SamModel

    return SamModel.from_pretrained(folder).eval().requires_grad_(False)


def test_a_whole_sam_gives_its_image_encoder(whole: Path) -> None:
    backbone = create_backbone(str(whole))
    model = stock(whole)
    with torch.no_grad():
        tokens = backbone(images(64))
        expected = model.get_image_embeddings(images(64))
    assert torch.equal(tokens.patches, expected.flatten(2).transpose(1, 2))
    assert torch.equal(tokens.pooled, tokens.patches.mean(1))
    assert (tokens.grid, tokens.levels) == ((4, 4), ())
    assert backbone.info.sha256 == fingerprint(model.vision_encoder)
    assert sum(p.numel() for p in backbone.parameters()) == sum(p.numel() for p in model.vision_encoder.parameters())


def test_info(whole: Path) -> None:
    info = create_backbone(str(whole), 96).info
    assert (info.family, info.dim, info.patch, info.stride, info.depth, info.heads) == ("sam", 16, 16, 16, 3, 2)
    assert (info.prefix_tokens, info.image_size, info.fixed_size) == (0, 96, True)
    assert info.mean == (0.485, 0.456, 0.406)
    assert create_backbone("random:dinov2-tiny").info.fixed_size is False


def bicubic(table: np.ndarray, side: int) -> np.ndarray:
    """Keys' cubic convolution with a = -0.75 (edges repeated, pixel centres at halves) of a grid [h, w, c], float64."""

    def weight(distance: float) -> float:
        x, a = abs(distance), -0.75
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    def matrix(old: int, new: int) -> np.ndarray:
        rows = np.zeros((new, old))
        for row in range(new):
            centre = (row + 0.5) * old / new - 0.5
            for tap in range(math.floor(centre) - 1, math.floor(centre) + 3):
                rows[row, min(max(tap, 0), old - 1)] += weight(centre - tap)
        return rows

    return np.einsum("yh,hwc,xw->yxc", matrix(table.shape[0], side), table, matrix(table.shape[1], side))


@pytest.mark.parametrize("side", [16, 48, 80])
def test_another_size_is_the_stock_model_with_its_tables_interpolated(whole: Path, side: int) -> None:
    """Absolute positions by hand; relative ones as the stock model interpolates its longer table in every forward."""
    model = stock(whole).vision_encoder
    cells = side // 16
    table = bicubic(model.pos_embed[0].double().numpy(), cells)
    model.pos_embed = nn.Parameter(torch.from_numpy(table)[None].float(), requires_grad=False)
    model.patch_embed.image_size = (side, side)
    backbone = create_backbone(str(whole), side)
    with torch.no_grad():
        expected = model(images(side)).last_hidden_state
        tokens = backbone(images(side))
    assert tokens.grid == (cells, cells)
    torch.testing.assert_close(tokens.patches, expected.flatten(2).transpose(1, 2), atol=2e-5, rtol=0)


def test_tables_are_interpolated_once_and_windows_keep_theirs(whole: Path) -> None:
    native, larger = create_backbone(str(whole)), create_backbone(str(whole), 96)
    encoder = larger.model.vision_encoder
    assert encoder.pos_embed.shape == (1, 6, 6, 32)
    assert encoder.layers[GLOBAL].attn.rel_pos_h.shape == (11, 16)
    for index in range(GLOBAL):
        for name in ("rel_pos_h", "rel_pos_w"):
            kept = getattr(native.model.vision_encoder.layers[index].attn, name)
            assert torch.equal(getattr(encoder.layers[index].attn, name), kept)
    assert not any(parameter.requires_grad for parameter in larger.parameters())
    assert not any(module.training for module in larger.modules())
    # The digest is that of the file, whatever the size.
    assert larger.info.sha256 == native.info.sha256


def test_the_same_size_leaves_the_tables_alone(whole: Path) -> None:
    backbone = create_backbone(str(whole), 64)
    assert backbone.info.sha256 == fingerprint(backbone.model)


@pytest.mark.parametrize(
    ("size", "says"),
    [
        (100, "must be a multiple of .*patch of 16 px, got 100; try 96$"),
        ((48, 64), "must be square for .*, got 48x64; try 64$"),
    ],
)
def test_a_size_it_cannot_have(whole: Path, size: int | tuple[int, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        create_backbone(str(whole), size)


def test_a_picture_of_another_size_is_refused(whole: Path) -> None:
    backbone = create_backbone(str(whole), 48)
    with pytest.raises(ConfigError, match="opened for 48x48 px, pictures are 64x64 px"):
        backbone(images(64))
    with pytest.raises(ConfigError, match="do not divide into patches of 16 px"):
        backbone(torch.zeros(1, 3, 48, 50))


def test_every_site_names_its_rows(whole: Path) -> None:
    backbone = create_backbone(str(whole))
    assert [site.name for site in backbone.sites] == [
        f"block.{index}.{part}" for index in range(3) for part in ("q", "k", "v", "o", "fc1", "fc2")
    ]
    rows = {"q": (0, 32), "k": (32, 64), "v": (64, 96)}
    for site in backbone.sites:
        module = backbone.get_submodule(site.module)
        assert isinstance(module, nn.Linear)
        assert (site.rows, site.inputs) == (rows.get(site.part), module.in_features)
        assert site.outputs == (32 if site.rows else module.out_features)
        assert site.input_key == f"block.{site.block}.{'attn' if site.rows else site.part}"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_sites_play_the_part_of_their_name(
    whole: Path, attention: str, recorded: Callable[..., tuple[dict[str, Tensor], dict[str, Tensor]]]
) -> None:
    """Attention written out from the rows of q, k and v is what o reads; relative positions are silenced for it."""
    backbone = create_backbone(str(whole), 80)
    backbone.set_attention(attention)
    layer = backbone.model.vision_encoder.layers[GLOBAL].attn
    layer.rel_pos_h.data.zero_()
    layer.rel_pos_w.data.zero_()
    inputs, outputs = recorded(backbone, images(80))
    sites = {site.part: site for site in backbone.sites if site.block == GLOBAL}
    parts = []
    for part in "qkv":
        site = sites[part]
        assert site.rows is not None
        out = outputs[site.name][..., slice(*site.rows)].flatten(1, 2)
        parts.append(out.unflatten(-1, (2, -1)).transpose(1, 2))
    q, k, v = parts
    expected = ((q @ k.transpose(-1, -2) / math.sqrt(16)).softmax(-1) @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(inputs[sites["o"].name].flatten(1, 2), expected, atol=1e-5, rtol=0)


def test_attention_can_be_chosen(whole: Path) -> None:
    backbone = create_backbone(str(whole), 80)
    kinds = []
    results = []
    for attention in ("eager", "sdpa"):
        backbone.set_attention(attention)
        kinds.append({type(layer.attn).__name__ for layer in backbone.model.vision_encoder.layers})
        with torch.no_grad():
            results.append(backbone(images(80)).patches)
    assert kinds == [{"SamVisionAttention"}, {"SamVisionSdpaAttention"}]
    torch.testing.assert_close(*results, atol=1e-5, rtol=0)


def adapted(backbone: Backbone) -> Network:
    adapter = Lora(LoraConfig(rank=3, alpha=2.0), backbone.sites, backbone.info)
    head = LinearHead(LinearConfig(), backbone.info.dim)
    head.grow(4, torch.Generator().manual_seed(0))
    head.classifier.draw_idle(torch.Generator().manual_seed(0))
    network = Network(backbone, adapter, head)
    generator = torch.Generator().manual_seed(5)
    for parameter in adapter.parameters():
        parameter.data.normal_(generator=generator)
    return network


def test_lora_through_the_rows_merges_exactly(whole: Path) -> None:
    """Side by side, merged, and a stock model whose q and v rows are changed by hand: one function."""
    backbone = create_backbone(str(whole), 80)
    by_hand, bare = copy.deepcopy(backbone), copy.deepcopy(backbone)
    network = adapted(backbone)
    pictures = torch.randint(0, 256, (2, 80, 80, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        apart = network.tokens(pictures)[0].patches
        for index in range(3):
            weight = by_hand.model.vision_encoder.layers[index].attn.qkv.weight
            for part, start in (("q", 0), ("v", 64)):
                down = network.adapter.down[f"block_{index}_{part}"]
                up = network.adapter.up[f"block_{index}_{part}"]
                weight[start : start + 32] += 2.0 / 3 * up @ down
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (backbone.info.mean, backbone.info.std))
        pixels = (pictures.permute(0, 3, 1, 2) / 255 - mean) / std
        expected, plain = by_hand(pixels).patches, bare(pixels).patches
        network.merge()
        merged = network.tokens(pictures)[0].patches
        network.unmerge()
        again = network.tokens(pictures)[0].patches
    torch.testing.assert_close(apart, expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(merged, expected, atol=2e-5, rtol=0)
    assert torch.equal(again, apart)
    assert (apart - plain).abs().mean() > 1e-2


def test_gradients_reach_the_factors_of_every_block(whole: Path) -> None:
    network = adapted(create_backbone(str(whole), 48))
    network.predict(torch.randint(0, 256, (1, 48, 48, 3), dtype=torch.uint8)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.adapter.parameters())


def test_bfloat16_runs_and_stays_near(whole: Path) -> None:
    backbone = create_backbone(str(whole), 48)
    with torch.no_grad():
        exact = backbone(images(48)).patches
        half = backbone.to(torch.bfloat16)(images(48).bfloat16()).patches
    assert half.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(half.float(), exact, dim=-1).mean() > 0.98


def test_random_weights_see_the_picture() -> None:
    """transformers would draw SAM with a spread of 1e-10, of which nothing is left behind the neck."""
    backbone = create_backbone("random:sam-tiny")
    assert backbone.info.revision == "seed 0"
    with torch.no_grad():
        one, other = backbone(images(64)).patches
    assert (one - other).abs().mean() > 0.1
