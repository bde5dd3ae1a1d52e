"""SegFormer's encoders against the stock model of transformers, and checkpoints as the hub has them."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sapwood.adapters.base import choose_sites
from sapwood.adapters.lora import Lora, LoraConfig
from sapwood.backbones import Backbone, create_backbone, fingerprint, known_backbones
from sapwood.errors import ConfigError
from sapwood.heads.linear import LinearConfig, LinearHead
from sapwood.network import Network

Recorded = Callable[..., tuple[dict[str, Tensor], dict[str, Tensor]]]
NAME = "random:mit-tiny"
WIDTHS, DEPTHS, HEADS = (8, 16, 16, 24), (1, 2, 1, 1), (1, 2, 2, 3)
BLOCKS = [(stage, block) for stage, depth in enumerate(DEPTHS) for block in range(depth)]

# The names that the hub's checkpoints have, from those of transformers 5.23.
OLD_NAMES = [
    (r"^stages\.(\d+)\.patch_embeddings\.", r"encoder.patch_embeddings.\1."),
    (r"^stages\.(\d+)\.blocks\.", r"encoder.block.\1."),
    (r"^stages\.(\d+)\.layer_norm\.", r"encoder.layer_norm.\1."),
    (r"attention\.q_proj", "attention.self.query"),
    (r"attention\.k_proj", "attention.self.key"),
    (r"attention\.v_proj", "attention.self.value"),
    (r"attention\.sequence_reduction\.sequence_reduction", "attention.self.sr"),
    (r"attention\.sequence_reduction\.layer_norm", "attention.self.layer_norm"),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"mlp\.fc1", "mlp.dense1"),
    (r"mlp\.fc2", "mlp.dense2"),
    (r"layernorm_before", "layer_norm_1"),
    (r"layernorm_after", "layer_norm_2"),
]


@pytest.fixture
def backbone(drawn: Callable[..., Backbone]) -> Backbone:
    return drawn(NAME)


def images(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(2))


def bilinear(level: np.ndarray, height: int, width: int) -> np.ndarray:
    """[c, h, w] at another size by hand: pixel centres at halves, edges repeated, float64."""

    def matrix(old: int, new: int) -> np.ndarray:
        rows = np.zeros((new, old))
        for row in range(new):
            centre = min(max((row + 0.5) * old / new - 0.5, 0), old - 1)
            low = math.floor(centre)
            rows[row, low] += 1 - (centre - low)
            rows[row, min(low + 1, old - 1)] += centre - low
        return rows

    return np.einsum("yh,chw,xw->cyx", matrix(level.shape[1], height), level, matrix(level.shape[2], width))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 96), (96, 32)])
def test_levels_are_those_of_the_stock_model(backbone: Backbone, height: int, width: int) -> None:
    with torch.no_grad():
        tokens = backbone(images(height, width))
        stock = backbone.model(pixel_values=images(height, width), output_hidden_states=True)
    assert [tuple(level.shape) for level in tokens.levels] == [
        (2, width_, height // 4 >> stage, width // 4 >> stage) for stage, width_ in enumerate(WIDTHS)
    ]
    for level, expected in zip(tokens.levels, stock.hidden_states, strict=True):
        assert torch.equal(level, expected)
    assert tokens.grid == (height // 4, width // 4)
    maps = tokens.patches.transpose(1, 2).unflatten(2, tokens.grid)
    for picture in range(2):
        expected = [bilinear(level[picture].double().numpy(), *tokens.grid) for level in tokens.levels]
        np.testing.assert_allclose(maps[picture].numpy(), np.concatenate(expected), atol=1e-5)
    torch.testing.assert_close(tokens.pooled, maps.mean((2, 3)), atol=1e-5, rtol=0)


def test_info(backbone: Backbone) -> None:
    info = backbone.info
    assert (info.family, info.dim, info.patch, info.stride, info.depth) == ("mit", sum(WIDTHS), 32, 4, sum(DEPTHS))
    assert (info.prefix_tokens, info.fixed_size, info.image_size) == (0, False, 224)
    assert create_backbone(NAME, (96, 128)).info.image_size == (96, 128)
    assert "non-commercial" in known_backbones()["mit-b2"].licence


def test_a_size_that_does_not_divide_is_refused(backbone: Backbone) -> None:
    with pytest.raises(ConfigError, match="pictures of 64x80 px do not divide into patches of 32 px; take 64x64"):
        backbone(images(64, 80))
    with pytest.raises(ConfigError, match=r"patch of 32 px, got 168x224; try 160x224$"):
        create_backbone(NAME, (168, 224))


def test_frozen_and_in_evaluation_mode(backbone: Backbone) -> None:
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(module.training for module in backbone.modules())


def test_every_site_is_the_linear_layer_it_says(backbone: Backbone) -> None:
    assert [site.name for site in backbone.sites] == [
        f"stage.{stage}.block.{block}.{part}" for stage, block in BLOCKS for part in ("q", "k", "v", "o", "fc1", "fc2")
    ]
    for site in backbone.sites:
        module = backbone.get_submodule(site.module)
        assert isinstance(module, nn.Linear)
        assert (module.in_features, module.out_features) == (site.inputs, site.outputs)
        assert (site.kind, site.rows) == ("linear", None)
        stage, block = int(site.name.split(".")[1]), int(site.name.split(".")[3])
        assert site.block == BLOCKS.index((stage, block))


def test_blocks_are_chosen_over_all_stages(backbone: Backbone) -> None:
    chosen = choose_sites(backbone.sites, ("q",), "1,-1")
    assert [site.name for site in chosen] == ["stage.1.block.0.q", "stage.3.block.0.q"]


def test_sites_play_the_part_of_their_name(backbone: Backbone, recorded: Recorded) -> None:
    inputs, outputs = recorded(backbone, images(64, 96))
    for stage, block in BLOCKS:
        name = f"stage.{stage}.block.{block}"
        q, k, v = (outputs[f"{name}.{part}"].unflatten(-1, (HEADS[stage], -1)).transpose(1, 2) for part in "qkv")
        scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        expected = (scores @ v).transpose(1, 2).flatten(2)
        torch.testing.assert_close(inputs[f"{name}.o"], expected, atol=1e-5, rtol=0)


def test_equal_input_keys_see_the_same_input(backbone: Backbone, recorded: Recorded) -> None:
    inputs, _ = recorded(backbone, images(64, 64))
    first: dict[str, Tensor] = {}
    for site in backbone.sites:
        assert first.setdefault(site.input_key, inputs[site.name]) is inputs[site.name]
    assert len({id(tensor) for tensor in first.values()}) == len(first)
    # Only the last stage has no reduction: its q, k and v read one input.
    assert len(first) == 4 * DEPTHS[3] + 5 * sum(DEPTHS[:3])


def test_lora_through_the_sites_merges_exactly(backbone: Backbone) -> None:
    by_hand, bare = copy.deepcopy(backbone), copy.deepcopy(backbone)
    adapter = Lora(LoraConfig(rank=3, alpha=2.0), backbone.sites, backbone.info)
    head = LinearHead(LinearConfig(), backbone.info.dim)
    head.grow(4, torch.Generator().manual_seed(0))
    head.classifier.draw_idle(torch.Generator().manual_seed(0))
    network = Network(backbone, adapter, head)
    generator = torch.Generator().manual_seed(5)
    for parameter in adapter.parameters():
        parameter.data.normal_(std=0.5, generator=generator)
    pictures = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        apart = network.tokens(pictures)[0].patches
        for stage, block in BLOCKS:
            attention = by_hand.model.stages[stage].blocks[block].attention
            for part in ("q", "v"):
                key = f"stage_{stage}_block_{block}_{part}"
                getattr(attention, f"{part}_proj").weight += 2.0 / 3 * adapter.up[key] @ adapter.down[key]
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (backbone.info.mean, backbone.info.std))
        pixels = (pictures.permute(0, 3, 1, 2) / 255 - mean) / std
        expected, plain = by_hand(pixels).patches, bare(pixels).patches
        network.merge()
        merged = network.tokens(pictures)[0].patches
        logits = network.predict(pictures)
        network.unmerge()
        again = network.tokens(pictures)[0].patches
    torch.testing.assert_close(apart, expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(merged, expected, atol=2e-5, rtol=0)
    assert torch.equal(again, apart)
    assert logits.shape == (2, 4)
    assert (apart - plain).abs().mean() > 1e-2


def test_attention_can_be_chosen(backbone: Backbone) -> None:
    with torch.no_grad():
        fused = backbone(images(64, 64)).patches
        backbone.set_attention("eager")
        eager = backbone(images(64, 64)).patches
    assert backbone.model.config._attn_implementation == "eager"
    torch.testing.assert_close(eager, fused, atol=1e-5, rtol=0)


def test_bfloat16_runs_and_stays_near(backbone: Backbone) -> None:
    with torch.no_grad():
        exact = backbone(images(64, 64)).patches
        half = backbone.to(torch.bfloat16)(images(64, 64).bfloat16()).patches
    assert half.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(half.float(), exact, dim=-1).mean() > 0.98


@pytest.mark.parametrize("flat", [False, True], ids=["as a map", "last stage as a sequence"])
def test_a_checkpoint_in_the_hubs_format_loads_every_weight(backbone: Backbone, flat: bool, tmp_path: Path) -> None:
    """A whole classifier with its prefix, its old names and its own tensors."""
    tensors = {}
    for name, tensor in backbone.model.state_dict().items():
        for pattern, old in OLD_NAMES:
            name = re.sub(pattern, old, name)
        tensors["segformer." + name] = tensor.contiguous()
    assert "segformer.encoder.block.1.0.attention.self.sr.weight" in tensors
    tensors["classifier.weight"] = torch.ones(3, WIDTHS[-1])
    config = {**backbone.model.config.to_dict(), "architectures": ["SegformerForImageClassification"]}
    (tmp_path / "config.json").write_text(json.dumps(config | {"reshape_last_stage": not flat}))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})

    loaded = create_backbone(str(tmp_path), 64)
    assert loaded.info.sha256 == fingerprint(backbone.model)
    with torch.no_grad():
        ours, theirs = loaded(images(64, 64)), backbone(images(64, 64))
    assert torch.equal(ours.patches, theirs.patches)
    assert ours.levels[-1].shape == (2, 24, 2, 2)
