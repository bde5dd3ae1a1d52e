"""Cross entropy over the round's own classes, or over all."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sapwood.errors import ConfigError
from sapwood.objectives.base import Outputs
from sapwood.objectives.finetune import Finetune, FinetuneConfig
from sapwood.objectives.pixels import PixelConfig
from sapwood.task import Task

MIXED = Task(1, "mixed", (3,), (1, 3), 4, seed=0)  # an old class and a new one


def test_own_scope_holds_every_annotated_class_old_or_new() -> None:
    logits = torch.tensor([[9.0, 1.0, 9.0, 2.0]], requires_grad=True)
    loss = Finetune(FinetuneConfig()).loss(Outputs(logits), torch.tensor([1]), None, MIXED)
    assert loss.item() == pytest.approx(torch.log1p(torch.exp(torch.tensor(1.0))).item())
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[0, [0, 2]].tolist() == [0, 0]  # rows of other classes do not move
    assert logits.grad[0, [1, 3]].abs().min() > 0


def test_seen_scope_holds_all() -> None:
    logits = torch.tensor([[9.0, 1.0, 9.0, 2.0]], requires_grad=True)
    loss = Finetune(FinetuneConfig(scope="seen")).loss(Outputs(logits), torch.tensor([1]), None, MIXED)
    assert loss.item() == pytest.approx(-logits.detach().log_softmax(1)[0, 1].item())
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.abs().min() > 0


def test_pixels_are_a_softmax_over_all_channels_and_divided_as_told() -> None:
    logits = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.arange(18).reshape(2, 3, 3) % 5
    valid = targets < 4
    targets = torch.where(valid, targets, 255).to(torch.uint8)
    config = Finetune.config_type("segmentation")
    assert config is PixelConfig
    loss = Finetune(config()).loss(Outputs(logits), targets, None, MIXED)
    whole = F.cross_entropy(logits, targets.long(), ignore_index=255, reduction="sum").item()
    assert loss.item() == pytest.approx(whole / int(valid.sum()))
    loss = Finetune(config(ce_denominator="all_pixels")).loss(Outputs(logits), targets, None, MIXED)
    assert loss.item() == pytest.approx(whole / 18)


def test_bad_pixel_settings() -> None:
    with pytest.raises(ConfigError, match=r"objective.ce_denominator must be valid or all_pixels, got 'all'"):
        PixelConfig(ce_denominator="all")  # type: ignore[arg-type]


def test_keeps_nothing() -> None:
    assert Finetune(FinetuneConfig()).state() == ({}, {})
    assert Finetune(FinetuneConfig()).penalty({}) is None
