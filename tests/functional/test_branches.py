"""Merged branches against torch's own layers in evaluation mode, and the rules written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sapwood.functional import segmentation as seg
from sapwood.functional.branches import Branch


def layers(seed: int, bias: bool, kernel: int, dilation: int, eps: float) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    rng = torch.Generator().manual_seed(seed)
    convolution = nn.Conv2d(3, 5, kernel, padding=dilation * (kernel // 2), dilation=dilation, bias=bias).double()
    norm = nn.BatchNorm2d(5, eps=eps).double().eval()
    with torch.no_grad():
        for tensor in (*convolution.parameters(), norm.weight, norm.bias, norm.running_mean):
            assert tensor is not None
            tensor.copy_(torch.randn(tensor.shape, generator=rng, dtype=tensor.dtype))
        assert norm.running_var is not None
        norm.running_var.copy_(torch.rand(5, generator=rng, dtype=torch.float64) + 0.1)
    return convolution, norm


def branch(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Branch:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return Branch(
        convolution.weight, convolution.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps
    )


@given(
    seed=st.integers(0, 99),
    bias=st.tuples(st.booleans(), st.booleans()),
    kernel=st.sampled_from([1, 3]),
    dilation=st.sampled_from([1, 2]),
    eps=st.sampled_from([1e-5, 0.1]),
)
@settings(max_examples=30, deadline=None)
def test_merged_is_the_mean_of_both(seed: int, bias: tuple[bool, bool], kernel: int, dilation: int, eps: float) -> None:
    pairs = [layers(seed + i, bias[i], kernel, dilation, eps) for i in range(2)]
    images = torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with torch.no_grad():
        outputs = [norm(convolution(images)) for convolution, norm in pairs]
        weight, shift = seg.merge_parallel_branches(*(branch(*pair) for pair in pairs))
        merged = nn.functional.conv2d(images, weight, shift, padding=dilation * (kernel // 2), dilation=dilation)
        torch.testing.assert_close(merged, (outputs[0] + outputs[1]) / 2, rtol=1e-10, atol=1e-10)
        weight, shift = seg.fold_batch_norm(branch(*pairs[0]))
        alone = nn.functional.conv2d(images, weight, shift, padding=dilation * (kernel // 2), dilation=dilation)
        torch.testing.assert_close(alone, outputs[0], rtol=1e-10, atol=1e-10)


def test_official_rule_of_gamma() -> None:
    first, second = (branch(*layers(seed, True, 1, 1, 0.01)) for seed in (1, 2))
    gammas = torch.cat([first.gamma, second.gamma])
    assert (gammas < 0).any()
    weight, shift = seg.merge_parallel_branches(first, second, gamma_rule="inplace_abn")
    for c in range(5):
        row, rest = torch.zeros(3, 1, 1, dtype=torch.float64), 0.0
        for one in (first, second):
            assert one.bias is not None
            half = (abs(one.gamma[c]) + 0.01) / 2 / (one.var[c] + 0.01) ** 0.5
            row += half * one.weight[c]
            rest += one.beta[c] / 2 - one.mean[c] * half + half * one.bias[c]
        torch.testing.assert_close(weight[c], row, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(shift[c], torch.as_tensor(rest), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(weight, seg.merge_parallel_branches(first, second)[0], rtol=1e-2)
    # The two rules agree where gamma is positive and eps is 0.
    plain = [one._replace(gamma=one.gamma.abs(), eps=0.0) for one in (first, second)]
    for one, other in zip(
        seg.merge_parallel_branches(*plain), seg.merge_parallel_branches(*plain, gamma_rule="inplace_abn"), strict=True
    ):
        assert torch.equal(one, other)


def test_merging_keeps_gradients_and_type() -> None:
    first, second = (branch(*layers(seed, False, 1, 1, 1e-5)) for seed in (1, 2))

    def merged(weight: torch.Tensor, gamma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return seg.merge_parallel_branches(first._replace(weight=weight, gamma=gamma), second)

    assert torch.autograd.gradcheck(merged, (first.weight, first.gamma))
    low = [Branch(*(t if t is None else t.float() for t in one[:-1])) for one in (first, second)]
    assert {t.dtype for t in seg.merge_parallel_branches(*low)} == {torch.float32}


def test_choice_of_branches() -> None:
    draws = torch.rand(30000, generator=torch.Generator().manual_seed(0))
    first, second = seg.branch_weights(draws)
    for r, a, b in zip(draws[:300].tolist(), first.tolist(), second.tolist(), strict=False):
        assert (a, b) == ((2, 0) if r < 0.33 else (0, 2) if r < 0.66 else (1, 1))
    assert torch.equal(first + second, torch.full_like(draws, 2))  # the mean of two equal branches never changes
    assert first.mean().item() == pytest.approx(1, abs=0.02)
    edges = torch.tensor([0.0, 0.33, 0.66], dtype=torch.float64)
    assert [w.tolist() for w in seg.branch_weights(edges)] == [[2, 0, 1], [0, 2, 1]]
    assert seg.branch_weights(edges)[0].dtype == torch.float64


@pytest.mark.parametrize("rule", ["abs", "", None])
def test_what_is_refused(rule: Any) -> None:
    first = branch(*layers(0, True, 1, 1, 1e-5))
    with pytest.raises(ValueError, match="gamma_rule must be batch_norm or inplace_abn, got"):
        seg.fold_batch_norm(first, gamma_rule=rule)
    other = branch(*layers(0, True, 3, 1, 1e-5))
    with pytest.raises(ValueError, match=r"branches of \[5, 3, 1, 1\] and \[5, 3, 3, 3\] cannot merge"):
        seg.merge_parallel_branches(first, other)
