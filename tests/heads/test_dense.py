"""The dense head: values by hand, growth, decoders, seeds, and what it stores."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from sapwood.backbones.base import Tokens
from sapwood.errors import ConfigError, StateError
from sapwood.heads import HEADS, DenseHead
from sapwood.heads.dense import DenseConfig

DIM, GRID = 4, (3, 5)
DECODERS = ("none", "conv1x1", "conv3x3")
every_decoder = pytest.mark.parametrize("decoder", DECODERS)


def tokens(patches: Tensor, grid: tuple[int, int] = GRID) -> Tokens:
    return Tokens(patches.mean(1), patches, grid)


def patches(count: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, GRID[0] * GRID[1], DIM, generator=torch.Generator().manual_seed(seed))


def grown(decoder: str, classes: int = 3, seed: int = 0) -> DenseHead:
    head = DenseHead(DenseConfig(decoder=decoder), DIM)
    head.grow(classes, torch.Generator().manual_seed(seed))
    return head


def by_hand(head: DenseHead, x: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Logits [B, K, h, w] of patches [B, h * w, d] in float64, one patch after the other."""
    height, width = grid
    weight = {name: value.detach().double().numpy() for name, value in head.named_parameters()}
    maps = x.reshape(len(x), height, width, x.shape[2])
    if "decoder.weight" in weight:
        kernel = weight["decoder.weight"]
        reach = kernel.shape[2] // 2
        out = np.zeros_like(maps)
        for row in range(height):
            for column in range(width):
                total = np.tile(weight["decoder.bias"], (len(x), 1))
                for down in range(-reach, reach + 1):
                    for right in range(-reach, reach + 1):
                        if 0 <= row + down < height and 0 <= column + right < width:
                            near = maps[:, row + down, column + right]
                            total += near @ kernel[:, :, down + reach, right + reach].T
                out[:, row, column] = np.maximum(total, 0)
        maps = out
    logits = maps @ weight["classifier.weight"].T + weight["classifier.bias"]
    return logits.transpose(0, 3, 1, 2)


def test_two_patches_by_hand() -> None:
    head = DenseHead(DenseConfig(), 2)
    head.grow(2, torch.Generator())
    assert head.decoder is not None
    with torch.no_grad():
        head.decoder.weight.copy_(torch.tensor([[1.0, -1.0], [0.0, 2.0]])[:, :, None, None])
        head.decoder.bias.copy_(torch.tensor([0.0, -3.0]))
        head.classifier.weight.copy_(torch.tensor([[1.0, 0.0], [2.0, -1.0]]))
        head.classifier.bias.copy_(torch.tensor([0.5, 0.0]))
    # (3, 1) -> relu (2, -1) = (2, 0) -> (2.5, 4);  (1, 2) -> relu (-1, 1) = (0, 1) -> (0.5, -1)
    found = head(tokens(torch.tensor([[[3.0, 1.0], [1.0, 2.0]]]), (1, 2)))
    assert found.tolist() == [[[[2.5, 0.5]], [[4.0, -1.0]]]]
    logits = head(tokens(torch.tensor([[[3.0, 1.0], [1.0, 2.0]]]), (2, 1)))
    assert logits.tolist() == [[[[2.5], [0.5]], [[4.0], [-1.0]]]]


@every_decoder
def test_logits_are_those_worked_out_patch_by_patch(decoder: str) -> None:
    head = grown(decoder)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(parameter.shape))))
    x = patches()
    found = head(tokens(x))
    assert found.shape == (2, 3, *GRID)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.detach().numpy(), by_hand(head, x.double().numpy(), GRID), atol=1e-5)
    assert torch.equal(head.training_logits(tokens(x)), found)


@every_decoder
def test_growing_keeps_old_rows_bit_for_bit(decoder: str) -> None:
    head, x = grown(decoder), tokens(patches())
    before, logits = {name: value.clone() for name, value in head.state()[0].items()}, head(x)
    head.grow(2, torch.Generator().manual_seed(1))
    head.grow(0, torch.Generator().manual_seed(2))
    assert head.classes == 5
    after = head.state()[0]
    assert torch.equal(after["classifier.weight"][:3], before["classifier.weight"])
    assert torch.equal(after["classifier.bias"][:3], before["classifier.bias"])
    for name in before.keys() - {"classifier.weight", "classifier.bias"}:
        assert torch.equal(after[name], before[name])  # the decoder is drawn once
    torch.testing.assert_close(head(x)[:, :3], logits, atol=1e-6, rtol=0)
    assert after["classifier.weight"][3:].abs().max() > 0
    with pytest.raises(ValueError, match="got -1"):
        head.grow(-1, torch.Generator())


@every_decoder
def test_decoders_have_the_parameters_they_say(decoder: str) -> None:
    head = grown(decoder, classes=7)
    convolution = {"none": 0, "conv1x1": DIM * DIM + DIM, "conv3x3": 9 * DIM * DIM + DIM}[decoder]
    assert sum(parameter.numel() for parameter in head.parameters()) == convolution + 7 * (DIM + 1)
    assert all(parameter.requires_grad for parameter in head.parameters())
    assert head.declared_bytes() == 4 * (convolution + 7 * (DIM + 1))


@pytest.mark.parametrize("decoder", ["conv1x1", "conv3x3"])
def test_the_decoder_starts_as_he_uniform(decoder: str) -> None:
    head = DenseHead(DenseConfig(decoder=decoder), 64)
    head.grow(1, torch.Generator().manual_seed(0))
    assert head.decoder is not None
    weight = head.decoder.weight.detach()
    variance = 2 / (64 * weight.shape[2] ** 2)  # He et al. 2015: keeps the scale behind a ReLU
    assert weight.var().item() == pytest.approx(variance, rel=0.05)
    assert weight.abs().max().item() == pytest.approx(math.sqrt(3 * variance), rel=0.01)
    assert weight.mean().abs() < 0.01
    assert not head.decoder.bias.any()


@every_decoder
def test_the_seed_decides_and_nothing_else(decoder: str) -> None:
    torch.manual_seed(1)
    one, kept = grown(decoder, seed=5), torch.get_rng_state()
    torch.manual_seed(2)
    other = grown(decoder, seed=5)
    assert all(torch.equal(value, other.state()[0][name]) for name, value in one.state()[0].items())
    assert not torch.equal(one.classifier.weight, grown(decoder, seed=6).classifier.weight)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), kept)  # nothing was drawn from the global generator


@every_decoder
def test_save_and_load_predict_the_same(decoder: str) -> None:
    head, x = grown(decoder, classes=4), tokens(patches())
    tensors, meta = head.state()
    again = DenseHead(head.config, DIM)
    again.load(load(save(tensors)), json.loads(json.dumps(meta)))
    assert again.classes == 4
    assert torch.equal(again(x), head(x))
    again.grow(2, torch.Generator().manual_seed(1))  # a later round draws no new decoder
    torch.testing.assert_close(again(x)[:, :4], head(x), atol=1e-6, rtol=0)
    for missing in tensors:
        with pytest.raises(StateError, match=f"lacks the tensor '{missing}'"):
            DenseHead(head.config, DIM).load({k: v for k, v in tensors.items() if k != missing}, meta)
        with pytest.raises(StateError, match=f"tensor '{missing}' is "):
            DenseHead(head.config, DIM).load({**tensors, missing: tensors[missing].repeat_interleave(2, 0)}, meta)


@every_decoder
def test_gradients_reach_what_trains_and_the_patches(decoder: str) -> None:
    head, x = grown(decoder), patches().requires_grad_()
    head(tokens(x)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in head.parameters())
    assert x.grad is not None
    assert x.grad.abs().max() > 0


@pytest.mark.parametrize("decoder", ["none", "conv1x1"])
def test_a_patch_is_judged_alone(decoder: str) -> None:
    head, x = grown(decoder), patches(1)
    changed = x.clone()
    changed[0, 1 * GRID[1] + 3] += 5.0  # row 1, column 3
    moved = (head(tokens(x)) - head(tokens(changed))).abs().amax((0, 1)) > 1e-6
    assert moved.nonzero().tolist() == [[1, 3]]


def test_a_wider_decoder_sees_its_neighbours() -> None:
    head, x = grown("conv3x3"), patches(1)
    changed = x.clone()
    changed[0, 1 * GRID[1] + 3] += 5.0
    moved = (head(tokens(x)) - head(tokens(changed))).abs().amax((0, 1)) > 1e-6
    assert set(map(tuple, moved.nonzero().tolist())) <= {(row, column) for row in range(3) for column in (2, 3, 4)}
    assert moved.sum() > 1


@every_decoder
def test_no_picture_depends_on_its_batch(decoder: str) -> None:
    head, x = grown(decoder), patches(4)
    together = head(tokens(x))
    alone = torch.cat([head(tokens(row[None])) for row in x])
    torch.testing.assert_close(alone, together, atol=1e-6, rtol=0)


@every_decoder
def test_a_copy_stands_alone(decoder: str) -> None:
    head, x = grown(decoder), tokens(patches())
    teacher = copy.deepcopy(head)
    before = teacher(x)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(1.0)
    assert torch.equal(teacher(x), before)


@every_decoder
def test_logits_stay_in_full_precision_under_autocast(decoder: str) -> None:
    head, x = grown(decoder), patches().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(tokens(x))
    assert logits.dtype == torch.float32
    assert torch.equal(logits, head(tokens(x.float())))


def test_the_background_is_row_0_and_takes_part() -> None:
    """Its bias moves channel 0 alone; a softmax over the channels therefore moves all."""
    head, x = grown("conv1x1"), tokens(patches())
    before = head(x)
    with torch.no_grad():
        head.classifier.get_parameter("bias")[0] += 2.0
    after = head(x)
    torch.testing.assert_close(after[:, 0], before[:, 0] + 2.0, atol=1e-6, rtol=0)
    assert torch.equal(after[:, 1:], before[:, 1:])
    assert (after.softmax(1)[:, 1:] < before.softmax(1)[:, 1:]).all()


def test_facts_and_settings() -> None:
    assert HEADS["dense"] is DenseHead
    assert (DenseHead.kind, DenseHead.fitted, DenseConfig().decoder) == ("segmentation", "gradient", "conv1x1")
    assert not grown("none").wants_features
    with pytest.raises(
        ConfigError, match="head 'dense': decoder must be one of none, conv1x1, conv3x3, aspp; got '1x1'"
    ):
        DenseConfig(decoder="1x1")
