"""Normalisation, ASPP and parallel branches, against equations written out in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sapwood.heads.decoders import Aspp, ConvNorm, Norm, ParallelConv, draw_weights, make_decoder
from sapwood.task import Task

EPS = 1e-5
STARTS = ("official", "preserve")


def maps(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 0.5


def task(index: int, seed: int = 0) -> Task:
    return Task(index, f"round {index}", (), (), 3, seed)


def stirred(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The module with all numbers random, variances positive."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if value.is_floating_point():
                value.copy_(0.3 * torch.randn(value.shape, generator=generator))
                if name.endswith("var"):
                    value.abs_().add_(0.2)
    return module


def evaluated(conv: ConvNorm, x: Tensor) -> Tensor:
    """What a convolution with normalisation gives in evaluation, float64, from the definition."""
    assert conv.norm is not None
    out = dilated(x, conv.weight, conv.dilation)
    norm = conv.norm
    column = [value.detach().double().reshape(-1, 1, 1) for value in (norm.mean, norm.var, norm.weight, norm.bias)]
    return (out - column[0]) / (column[1] + EPS).sqrt() * column[2] + column[3]


def dilated(x: Tensor, weight: Tensor, rate: int) -> Tensor:
    """A dilated convolution as a wide one with zeros in its kernel, borders of zeros, float64."""
    reach = rate * (weight.shape[2] // 2)
    wide = torch.zeros(*weight.shape[:2], 2 * reach + 1, 2 * reach + 1, dtype=torch.float64)
    wide[:, :, :: max(rate, 1), :: max(rate, 1)] = weight.detach().double() if reach else 0
    if not reach:
        wide = weight.detach().double()
    return F.conv2d(F.pad(x.double(), [reach] * 4), wide)


def test_normalisation_by_hand() -> None:
    norm = stirred(Norm(3))
    assert isinstance(norm, Norm)
    x, mean, var = maps(2, 3, 4, 5), norm.mean.double().numpy(), norm.var.double().numpy()
    gamma, beta = (value.detach().double().numpy()[:, None, None] for value in (norm.weight, norm.bias))
    values = x.double().numpy()
    norm.eval()
    expected = (values - mean[:, None, None]) / np.sqrt(var[:, None, None] + EPS) * gamma + beta
    np.testing.assert_allclose(norm(x).detach().numpy(), expected, atol=1e-5)
    norm.train()
    own, spread = values.mean((0, 2, 3)), values.var((0, 2, 3))
    expected = (values - own[:, None, None]) / np.sqrt(spread[:, None, None] + EPS) * gamma + beta
    np.testing.assert_allclose(norm(x).detach().numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(norm.mean.numpy(), 0.9 * mean + 0.1 * own, atol=1e-6)
    np.testing.assert_allclose(norm.var.numpy(), 0.9 * var + 0.1 * spread * 40 / 39, atol=1e-6)


def test_frozen_normalisation_keeps_its_statistics() -> None:
    norm, x = stirred(Norm(3)), maps(2, 3, 4, 5)
    expected, before = norm.eval()(x), copy.deepcopy(norm.state_dict())
    norm.requires_grad_(False)
    assert torch.equal(norm.train()(x), expected)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_one_number_a_channel_has_no_variance() -> None:
    norm, x = stirred(Norm(3)), maps(1, 3, 1, 1)
    expected = norm.eval()(x)
    assert torch.equal(norm.train()(x), expected)
    assert not torch.equal(norm(maps(2, 3, 1, 1)), norm.eval()(maps(2, 3, 1, 1)))


@pytest.mark.parametrize("start", [None, "official"])
def test_aspp_as_written_out(start: str | None) -> None:
    aspp, x = stirred(Aspp(6, start)), maps(2, 6, 9, 14)  # type: ignore[arg-type]
    assert isinstance(aspp, Aspp)
    aspp.eval()
    seen = []
    for scale, rate, kernel in zip(aspp.scales, (1, 6, 12, 18), (1, 3, 3, 3), strict=True):
        pair = [scale] if isinstance(scale, ConvNorm) else [scale.old, scale.new]
        assert all(each.weight.shape[2:] == (kernel, kernel) and each.dilation == rate for each in pair)
        seen.append(F.relu(sum(evaluated(each, x) for each in pair) / len(pair)))  # type: ignore[arg-type]
    whole = F.relu(evaluated(aspp.pool, x.double().mean((2, 3), keepdim=True)))
    expected = evaluated(aspp.project, torch.cat([*seen, whole.expand(-1, -1, 9, 14)], 1))
    assert expected.shape == (2, 256, 9, 14)
    torch.testing.assert_close(aspp(x).double(), expected, atol=1e-4, rtol=1e-4)


def test_aspp_has_the_parameters_of_deeplab() -> None:
    count = sum(parameter.numel() for parameter in Aspp(2048, None).parameters())
    # As counted by hand: 1x1, three 3x3, pooling, projection without bias; six normalisations.
    assert count == 256 * (2048 + 3 * 9 * 2048 + 2048 + 5 * 256) + 6 * 2 * 256


def test_aspp_learns_from_a_single_picture() -> None:
    aspp = make_decoder("aspp", 4, None)
    assert aspp is not None
    draw_weights(aspp, torch.Generator().manual_seed(0))
    aspp.train()(maps(1, 4, 3, 3)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in aspp.parameters())


def branches(start: str = "official", channels: int = 60, kernel: int = 3) -> ParallelConv:
    made = stirred(ParallelConv("0", start, 4, channels, kernel))  # type: ignore[arg-type]
    assert isinstance(made, ParallelConv)
    return made.eval()


def learned(conv: ParallelConv, index: int, steps: int = 3, seed: int = 0) -> ParallelConv:
    """After a round's training, before its end."""
    conv.before_task(task(index, seed))
    conv.train()
    optimizer = torch.optim.SGD([each for each in conv.parameters() if each.requires_grad], 0.05)
    for step in range(steps):
        optimizer.zero_grad()
        (conv(maps(3, 4, 5, 6, seed=step)) - 1).square().mean().backward()
        optimizer.step()
    return conv.eval()


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("kernel", [1, 3])
def test_merged_branches_evaluate_as_their_mean(start: str, kernel: int) -> None:
    conv, x = branches(start, kernel=kernel), maps(2, 4, 5, 6, seed=9)
    for index in range(3):
        learned(conv, index)
        assert conv.new is not None
        open_, halves = conv(x), [conv.old(x), conv.new(x)]
        torch.testing.assert_close(open_, (halves[0] + halves[1]) / 2, atol=1e-6, rtol=0)
        assert (halves[0] - halves[1]).abs().max() > 0.01
        conv.after_task()
        torch.testing.assert_close(conv(x), open_, atol=1e-5, rtol=0)
        expected = F.conv2d(x, conv.old.weight, conv.old.bias, padding=kernel // 2)
        assert torch.equal(conv(x), expected)  # nothing but one convolution


def test_training_takes_one_branch_or_the_mean_channel_by_channel() -> None:
    conv, x = branches(channels=300), maps(2, 4, 5, 6)
    conv.before_task(task(0))
    conv.requires_grad_(True)
    assert conv.new is not None
    conv.train()
    with torch.no_grad():
        old, new = conv.old(x), conv.new(x)
        counts = np.zeros(3, int)
        for _ in range(20):
            out = conv(x)
            cases = torch.stack([old, new, (old + new) / 2])
            near = (cases - out).abs().amax((1, 3, 4)) < 1e-5  # [3, C]: all pictures and places take the same
            assert (near.sum(0) == 1).all()
            counts += near.sum(1).numpy()
    assert counts.sum() == 6000
    np.testing.assert_allclose(counts / 6000, [0.33, 0.33, 0.34], atol=0.025)


def test_draws_depend_on_seed_round_and_forward_alone() -> None:
    x = maps(2, 4, 5, 6)

    def outputs(index: int = 0, seed: int = 0, label: str = "0", forwards: int = 0) -> list[Tensor]:
        conv = branches()
        conv.label = label
        conv.before_task(task(index, seed))
        conv.forwards.fill_(forwards)
        conv.train()
        with torch.no_grad():
            return [conv(x) for _ in range(3)]

    torch.manual_seed(1)
    before, mine = torch.get_rng_state(), outputs()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert all(torch.equal(one, two) for one, two in zip(mine, outputs(), strict=True))
    assert not torch.equal(mine[0], mine[1])
    assert torch.equal(outputs(forwards=2)[0], mine[2])
    for other in (outputs(1), outputs(seed=1), outputs(label="1")):
        assert not torch.equal(other[0], mine[0])


def test_evaluation_counts_no_forwards_and_draws_nothing() -> None:
    conv, x = branches(), maps(2, 4, 5, 6)
    conv.before_task(task(0))
    assert torch.equal(conv(x), conv(x))
    assert int(conv.forwards) == 0
    conv.train()
    conv(x)
    assert int(conv.forwards) == 1
    conv.requires_grad_(False)  # frozen by whoever: nothing learns from a dropped branch
    assert torch.equal(conv(x), conv.eval()(x))
    conv.task = None
    conv.requires_grad_(True).train()
    with pytest.raises(RuntimeError, match="between before_task and after_task"):
        conv(x)


@pytest.mark.parametrize("start", STARTS)
def test_the_old_branch_learns_in_the_first_round_only(start: str) -> None:
    conv = branches(start)
    before = copy.deepcopy(conv.old.state_dict())
    learned(conv, 0)
    assert not torch.equal(conv.old.weight, before["weight"])
    assert all(parameter.requires_grad for parameter in conv.parameters())
    conv.after_task()
    conv.before_task(task(1))
    old, new = copy.deepcopy(conv.old.state_dict()), copy.deepcopy(conv.new.state_dict())  # type: ignore[union-attr]
    learned(conv, 1)
    assert all(torch.equal(value, old[name]) for name, value in conv.old.state_dict().items())
    assert conv.new is not None
    assert not torch.equal(conv.new.weight, new["weight"])
    assert {name.split(".")[0] for name, each in conv.named_parameters() if each.requires_grad} == {"new"}


def test_official_start_goes_on_with_the_new_branch() -> None:
    conv, x = branches(), maps(2, 4, 5, 6, seed=9)
    learned(conv, 0)
    assert conv.new is not None
    new = conv.new(x)
    conv.after_task()
    merged = conv(x)
    conv.before_task(task(1))
    torch.testing.assert_close(conv(x), (merged + new) / 2, atol=1e-6, rtol=0)
    assert (conv(x) - merged).abs().max() > 0.01  # not the network that it was


def test_preserving_start_keeps_the_function() -> None:
    conv, x = branches("preserve"), maps(2, 4, 5, 6, seed=9)
    learned(conv, 0).after_task()
    merged = conv(x)
    assert conv.new is None  # nothing is kept that is not needed
    conv.before_task(task(1))
    assert torch.equal(conv(x), merged)
    assert torch.equal(conv.train()(x), merged)  # whichever branch a channel takes
