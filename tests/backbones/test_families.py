"""Every family of the table against the stock model of transformers, on tiny encoders."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sapwood.backbones import FAMILIES, Backbone, create_backbone
from sapwood.errors import BackboneError, ConfigError

PREFIX = {"dinov2": 1, "dinov2-reg": 5, "vit": 1, "deit": 2, "clip": 1, "siglip": 0}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def backbone(family: str) -> Backbone:
    """A tiny encoder; all its parameters drawn, since several families start from zero positions and biases."""
    backbone = create_backbone(f"random:{family}-tiny")
    generator = torch.Generator().manual_seed(11)
    for parameter in backbone.parameters():
        parameter.data.normal_(std=0.3, generator=generator)
    return backbone


def pictures(backbone: Backbone, down: int, across: int, dtype: torch.dtype = torch.float32) -> Tensor:
    patch = backbone.info.patch
    return torch.randn(3, 3, down * patch, across * patch, generator=torch.Generator().manual_seed(2)).to(dtype)


@pytest.mark.parametrize(("down", "across"), [(2, 2), (3, 5), (4, 1), (1, 4)], ids=lambda side: str(side))
def test_features_are_those_of_the_stock_model(
    family: str, backbone: Backbone, down: int, across: int, tmp_path: Path
) -> None:
    """At the size of the position table, at others, and at another shape with as many patches."""
    import transformers

    images = pictures(backbone, down, across)
    backbone.model.save_pretrained(tmp_path)
    stock = getattr(transformers, FAMILIES[family].model_class).from_pretrained(tmp_path).eval()
    stock.requires_grad_(False)  # torch multiplies in another order where a gradient is wanted
    options = {} if family.startswith("dinov2") else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        theirs, ours = stock(images, **options), backbone(images)
    assert ours.grid == (down, across)
    assert ours.levels == ()
    assert torch.equal(ours.patches, theirs.last_hidden_state[:, PREFIX[family] :])
    assert ours.patches.shape == (3, down * across, 32)
    token = theirs.last_hidden_state[:, 0] if family in ("vit", "deit") else theirs.pooler_output
    assert torch.equal(ours.pooled, token)
    if family == "clip":
        assert torch.equal(ours.pooled, stock.post_layernorm(theirs.last_hidden_state[:, 0]))


def test_the_native_size_needs_no_interpolation(family: str, backbone: Backbone) -> None:
    images = pictures(backbone, 2, 2)
    with torch.no_grad():
        theirs = backbone.model(images)
        assert torch.equal(backbone(images).patches, theirs.last_hidden_state[:, PREFIX[family] :])


def test_frozen_and_in_evaluation_mode(backbone: Backbone) -> None:
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(module.training for module in backbone.modules())


def test_info(family: str, backbone: Backbone) -> None:
    info = backbone.info
    assert (info.family, info.prefix_tokens) == (family, PREFIX[family])
    assert (info.dim, info.depth, info.heads) == (32, 2, 2)
    assert info.image_size == 2 * info.patch
    assert (info.name, info.revision) == (f"random:{family}-tiny", "seed 0")


def test_every_site_is_the_linear_layer_it_says(backbone: Backbone) -> None:
    assert [site.name for site in backbone.sites] == [
        f"block.{index}.{part}" for index in range(2) for part in ("q", "k", "v", "o", "fc1", "fc2")
    ]
    for site in backbone.sites:
        module = backbone.get_submodule(site.module)
        assert isinstance(module, nn.Linear)
        assert (module.in_features, module.out_features) == (site.inputs, site.outputs)
        assert (site.kind, site.rows, f"block.{site.block}.{site.part}") == ("linear", None, site.name)


def record(backbone: Backbone, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def hook(_module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            inputs[name], outputs[name] = args[0], output

        return hook

    hooks = [backbone.get_submodule(site.module).register_forward_hook(keep(site.name)) for site in backbone.sites]
    with torch.no_grad():
        backbone(images)
    for hook in hooks:
        hook.remove()
    return inputs, outputs


def test_sites_play_the_part_of_their_name(backbone: Backbone) -> None:
    """Attention written out from the outputs of q, k and v is what o reads; v taken for k would show."""
    inputs, outputs = record(backbone, pictures(backbone, 3, 2))
    for index in range(backbone.info.depth):
        q, k, v = (
            outputs[f"block.{index}.{part}"].unflatten(-1, (backbone.info.heads, -1)).transpose(1, 2) for part in "qkv"
        )
        scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        expected = (scores @ v).transpose(1, 2).flatten(2)
        torch.testing.assert_close(inputs[f"block.{index}.o"], expected, atol=1e-5, rtol=0)
        assert outputs[f"block.{index}.fc1"].shape == inputs[f"block.{index}.fc2"].shape


def test_equal_input_keys_see_the_same_input(backbone: Backbone) -> None:
    inputs, _ = record(backbone, pictures(backbone, 2, 2))
    first: dict[str, Tensor] = {}
    for site in backbone.sites:
        assert first.setdefault(site.input_key, inputs[site.name]) is inputs[site.name]
    assert sorted(first) == sorted(f"block.{index}.{key}" for index in range(2) for key in ("attn", "o", "fc1", "fc2"))
    assert len({id(tensor) for tensor in first.values()}) == len(first)


def test_attention_can_be_chosen(backbone: Backbone) -> None:
    images = pictures(backbone, 3, 2)
    with torch.no_grad():
        fused = backbone(images)
        calls = count_fused_attention(backbone, images)
        backbone.set_attention("eager")
        eager = backbone(images)
        assert (calls, count_fused_attention(backbone, images)) == (backbone.info.depth, 0)
        backbone.set_attention("sdpa")
        assert torch.equal(backbone(images).patches, fused.patches)
    torch.testing.assert_close(eager.patches, fused.patches, atol=1e-5, rtol=0)
    torch.testing.assert_close(eager.pooled, fused.pooled, atol=1e-5, rtol=0)
    with pytest.raises(BackboneError, match="attention is one of sdpa, eager; got 'fast'"):
        backbone.set_attention("fast")  # type: ignore[arg-type]


def count_fused_attention(backbone: Backbone, images: Tensor) -> int:
    """Blocks whose attention went through torch's fused function; SigLIP's pooling head is no block."""
    from torch.overrides import TorchFunctionMode

    class Count(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is nn.functional.scaled_dot_product_attention and args[0].shape[-2] > 1:
                self.calls += 1
            return function(*args, **(kwargs or {}))

    with Count() as count:
        backbone(images)
    return count.calls


def test_bfloat16_runs_and_stays_near(backbone: Backbone) -> None:
    images = pictures(backbone, 3, 2)
    with torch.no_grad():
        exact = backbone(images).pooled
        half = backbone.to(torch.bfloat16)(images.bfloat16()).pooled
    assert half.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(half.float(), exact).min() > 0.98


def test_gradients_reach_the_pictures(backbone: Backbone) -> None:
    images = pictures(backbone, 2, 2).requires_grad_()
    backbone(images).pooled.square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_a_copy_is_on_its_own(backbone: Backbone) -> None:
    images = pictures(backbone, 2, 2)
    twin = copy.deepcopy(backbone)
    with torch.no_grad():
        before = backbone(images).pooled
        twin.get_submodule(twin.sites[0].module).weight.zero_()
        assert torch.equal(backbone(images).pooled, before)
        assert not torch.equal(twin(images).pooled, before)


def test_a_size_that_does_not_divide_is_refused(backbone: Backbone) -> None:
    patch = backbone.info.patch
    with pytest.raises(
        ConfigError, match=f"{2 * patch}x{2 * patch + 1} px do not divide.*take {2 * patch}x{2 * patch}"
    ):
        backbone(torch.zeros(1, 3, 2 * patch, 2 * patch + 1))
