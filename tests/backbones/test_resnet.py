"""Residual networks against the stock model of transformers, their dilated form, and batch norm that stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sapwood.adapters.full import FullConfig, FullFinetuning
from sapwood.backbones import Backbone, create_backbone, fingerprint, known_backbones, plan_backbone
from sapwood.backbones.architectures import random_backbone
from sapwood.backbones.resnet import ResNetBackbone
from sapwood.errors import BackboneError, ConfigError
from sapwood.heads.linear import LinearConfig, LinearHead
from sapwood.learner import Learner
from sapwood.network import Network

NAME = "random:resnet-tiny"
WIDTHS, DEPTHS = (16, 16, 24, 32), (1, 2, 1, 2)
BLOCKS = [(stage, block) for stage, depth in enumerate(DEPTHS) for block in range(depth)]
SHAPE = {"embedding_size": 8, "hidden_sizes": list(WIDTHS), "depths": list(DEPTHS)}
FORMS: dict[str, dict[str, Any]] = {
    "bottleneck": {},
    "basic": {"layer_type": "basic"},
    "strided first": {"downsample_in_bottleneck": True},
    "first stage too": {"downsample_in_first_stage": True},
}


def fill(backbone: Backbone) -> None:
    """Parameters and statistics of batch norm that all count, near those of a trained network."""
    generator = torch.Generator().manual_seed(11)
    for name, tensor in backbone.model.state_dict().items():
        if tensor.is_floating_point() and "normalization" in name:
            low = -0.3 if name.endswith(("bias", "mean")) else 0.5
            tensor.uniform_(low, low + 0.6, generator=generator)


@pytest.fixture
def opened() -> Callable[..., Backbone]:
    def give(form: str = "bottleneck") -> Backbone:
        backbone = random_backbone("tiny", "resnet", {**SHAPE, **FORMS[form]}, seed=3)
        fill(backbone)
        return backbone

    return give


@pytest.fixture
def backbone(opened: Callable[..., Backbone]) -> Backbone:
    return opened()


def images(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 32), (160, 96)])
@torch.no_grad()
def test_every_second_cell_is_the_stock_models(
    form: str, height: int, width: int, opened: Callable[..., Backbone], tmp_path: Path
) -> None:
    """The first stages are the same; of the last, the stock model at stride 32 has one cell in four."""
    import transformers

    backbone = opened(form)
    backbone.model.save_pretrained(tmp_path)
    stock = transformers.ResNetModel.from_pretrained(tmp_path).eval()
    expected = stock(images(height, width), output_hidden_states=True).hidden_states[1:]
    tokens = backbone(images(height, width))
    stride = 32 if form == "first stage too" else 16
    assert (backbone.info.patch, backbone.info.stride) == (stride, stride)
    assert tokens.grid == (height // stride, width // stride)
    for level, other in zip(tokens.levels[:-1], expected[:-1], strict=True):
        assert torch.equal(level, other)
    last = tokens.levels[-1]
    assert last.shape == (2, WIDTHS[-1], *tokens.grid)
    assert expected[-1].shape[2:] == (-(-tokens.grid[0] // 2), -(-tokens.grid[1] // 2))
    torch.testing.assert_close(last[:, :, ::2, ::2], expected[-1], atol=1e-5, rtol=1e-5)
    assert torch.equal(tokens.patches.transpose(1, 2).unflatten(2, tokens.grid), last)
    torch.testing.assert_close(tokens.pooled, last.mean((2, 3)))


@torch.no_grad()
def test_a_multiple_of_16_will_do(backbone: Backbone) -> None:
    tokens = backbone(images(48, 80))
    assert tokens.grid == (3, 5)
    assert [level.shape[2:] for level in tokens.levels] == [(12, 20), (6, 10), (3, 5), (3, 5)]


@torch.no_grad()
def test_the_last_stage_by_hand(backbone: Backbone) -> None:
    """The first 3x3, which had the stride, reads its neighbours; the next reads every second cell."""
    weights = {name: tensor.double() for name, tensor in backbone.model.state_dict().items()}

    def layer(path: str, maps: Tensor, dilation: int = 1) -> Tensor:
        kernel = weights[f"{path}.convolution.weight"]
        maps = F.conv2d(maps, kernel, padding=dilation * (kernel.shape[-1] // 2), dilation=dilation)
        mean, spread = weights[f"{path}.normalization.running_mean"], weights[f"{path}.normalization.running_var"]
        maps = (maps - mean[:, None, None]) / (spread[:, None, None] + 1e-5).sqrt()
        gain, shift = weights[f"{path}.normalization.weight"], weights[f"{path}.normalization.bias"]
        return maps * gain[:, None, None] + shift[:, None, None]

    tokens = backbone(images(80, 64))
    maps = tokens.levels[2].double()
    for block, dilation in ((0, 1), (1, 2)):
        path = f"encoder.stages.3.layers.{block}"
        inner = layer(f"{path}.layer.0", maps).relu()
        inner = layer(f"{path}.layer.2", layer(f"{path}.layer.1", inner, dilation).relu())
        maps = (inner + (layer(f"{path}.shortcut", maps) if block == 0 else maps)).relu()
    torch.testing.assert_close(tokens.levels[3].double(), maps, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_maps_are_the_stages_before_their_activation(backbone: Backbone) -> None:
    seen: list[Tensor] = []
    assert len(backbone.maps) == len(DEPTHS)
    for path in backbone.maps:
        backbone.get_submodule(path).register_forward_hook(lambda _module, _args, output: seen.append(output))
    tokens = backbone(images(64, 96))
    for maps, level in zip(seen, tokens.levels, strict=True):
        assert (maps < 0).any()
        assert torch.equal(backbone.to_map(maps, tokens.grid).relu(), level)
    assert backbone.attention_blocks() == ()


def test_info() -> None:
    info = create_backbone(NAME).info
    assert (info.family, info.dim, info.patch, info.stride, info.depth) == ("resnet", 32, 16, 16, sum(DEPTHS))
    assert (info.prefix_tokens, info.heads, info.fixed_size, info.image_size) == (0, 0, False, 224)
    assert create_backbone(NAME, (96, 128)).info.image_size == (96, 128)
    known = known_backbones()
    assert (known["resnet-101"].source, known["resnet-101"].licence) == ("microsoft/resnet-101", "Apache-2.0")
    assert plan_backbone("microsoft/resnet-50").info.dim == 2048


def test_a_size_that_does_not_divide_is_refused(backbone: Backbone) -> None:
    with pytest.raises(ConfigError, match="pictures of 64x72 px do not divide into patches of 16 px; take 64x64"):
        backbone(images(64, 72))
    with pytest.raises(ConfigError, match=r"patch of 16 px, got 168x224; try 160x224$"):
        create_backbone(NAME, (168, 224))
    with pytest.raises(BackboneError, match="one way only"):
        backbone.set_attention("eager")


def test_every_site_is_the_convolution_it_says(backbone: Backbone) -> None:
    assert [site.name for site in backbone.sites] == [
        f"stage.{stage}.block.{block}.conv{place}" for stage, block in BLOCKS for place in (1, 2, 3)
    ]
    assert len({site.input_key for site in backbone.sites}) == len(backbone.sites)
    for site in backbone.sites:
        module = backbone.get_submodule(site.module)
        assert isinstance(module, nn.Conv2d)
        assert (site.kind, site.rows, site.part[:-1]) == ("conv", None, "conv")
        assert site.kernel is not None
        assert module.weight.shape == (site.outputs, site.inputs, *site.kernel.size)
        assert site.kernel.size == ((3, 3) if site.part == "conv2" else (1, 1))
        assert (site.kernel.stride, site.kernel.padding, site.kernel.dilation) == (
            module.stride,
            module.padding,
            module.dilation,
        )
        stage, block = int(site.name.split(".")[1]), int(site.name.split(".")[3])
        assert site.block == BLOCKS.index((stage, block))
    strided = [site.name for site in backbone.sites if site.kernel and site.kernel.stride == (2, 2)]
    assert strided == ["stage.1.block.0.conv2", "stage.2.block.0.conv2"]
    dilated = [site.name for site in backbone.sites if site.kernel and site.kernel.dilation == (2, 2)]
    assert dilated == ["stage.3.block.1.conv2"]


def test_batch_norm_never_looks_at_the_batch(backbone: Backbone) -> None:
    """Also where all weights train: a step moves them and leaves the statistics."""
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    network = Network(
        backbone, FullFinetuning(FullConfig(), backbone.sites, backbone.info), LinearHead(LinearConfig(), 32)
    )
    network.train()
    statistics = {name: value.clone() for name, value in backbone.named_buffers()}
    assert len(statistics) == 3 * (1 + 3 * sum(DEPTHS) + 4)
    together = backbone(images(32, 48))
    alone = backbone(images(32, 48)[1:])
    torch.testing.assert_close(together.patches[1:], alone.patches, atol=1e-5, rtol=1e-5)
    together.pooled.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in backbone.parameters())
    assert all(torch.equal(value, statistics[name]) for name, value in backbone.named_buffers())
    assert not any(module.training for module in backbone.modules())


@torch.no_grad()
def test_random_weights_of_a_deep_network_stay_in_bounds() -> None:
    """101 layers, in evaluation mode: neither gone nor blown up, and two pictures differ."""
    backbone = create_backbone("random:resnet101")
    assert isinstance(backbone, ResNetBackbone)
    tokens = backbone(images(32, 32))
    for level in tokens.levels:
        assert 0.03 < level.std() < 3
    assert (tokens.pooled[0] - tokens.pooled[1]).norm() > 0.02 * tokens.pooled[0].norm()


def test_bfloat16_runs_and_stays_near(backbone: Backbone) -> None:
    with torch.no_grad():
        exact = backbone(images(64, 64)).patches
        half = backbone.to(torch.bfloat16)(images(64, 64).bfloat16()).patches
    assert half.dtype == torch.bfloat16
    assert F.cosine_similarity(half.float(), exact, dim=-1).mean() > 0.98


def test_a_checkpoint_in_the_hubs_format_loads_every_weight(backbone: Backbone, tmp_path: Path) -> None:
    """A whole classifier, as the hub has it: with its prefix and its own tensors."""
    tensors = {f"resnet.{name}": value.contiguous() for name, value in backbone.model.state_dict().items()}
    assert "resnet.encoder.stages.1.layers.0.layer.1.normalization.running_var" in tensors
    tensors["classifier.1.weight"] = torch.ones(3, WIDTHS[-1])
    config = {**backbone.model.config.to_dict(), "architectures": ["ResNetForImageClassification"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))

    loaded = create_backbone(str(tmp_path), 64)
    assert loaded.info.sha256 == fingerprint(backbone.model)
    assert (loaded.info.mean, loaded.info.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    with torch.no_grad():
        assert torch.equal(loaded(images(64, 64)).patches, backbone(images(64, 64)).patches)
    for name in [name for name in tensors if "num_batches_tracked" in name]:  # what a converter leaves out
        del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with torch.no_grad():
        assert torch.equal(create_backbone(str(tmp_path))(images(64, 64)).patches, loaded(images(64, 64)).patches)


@pytest.mark.parametrize("method", ["seq-lora", "clora+mib", "full+mib"])
def test_two_rounds_and_back(
    method: str, picture_folder: Callable[..., Path], mask_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """LoRA on the 3x3 convolutions (or all weights) learns, is stored and merged, for both kinds of task."""
    make, size = (mask_folder, (32, 48)) if "mib" in method else (picture_folder, 32)
    learner = Learner.create(tmp_path / "state", backbone=NAME, method=method, image_size=size)
    before = [parameter.clone() for parameter in learner.network.adapter.parameters()]
    fast = {"epochs": 2, "batch_size": 4, "precision": "fp32", "lr": 1e-2}
    learner.learn(make(["ant", "bee"], 4, name="one"), training=fast)
    learner.learn(make(["cat", "dog"], 4, name="two"))
    pictures = torch.randint(0, 256, (2, 32, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        given = learner.network.predict(pictures)
        opened = Learner.open(tmp_path / "state")
        assert torch.equal(opened.network.predict(pictures), given)
        torch.testing.assert_close(opened.merge().network.predict(pictures), given, atol=1e-4, rtol=1e-4)
    after = learner.network.adapter.state()[0]
    assert len(after) == (0 if "full" in method else 2 * sum(DEPTHS))
    assert all(name.endswith("conv2") and tensor.ndim == 4 for name, tensor in after.items())
    assert all(not torch.equal(one, two) for one, two in zip(before, after.values(), strict=True))
