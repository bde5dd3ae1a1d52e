"""Cross entropy over the round's own classes, or over all."""

from __future__ import annotations

import pytest
import torch

from sapwood.objectives.finetune import Finetune, FinetuneConfig
from sapwood.task import Task

MIXED = Task(1, "mixed", (3,), (1, 3), 4, seed=0)  # an old class and a new one


def test_own_scope_holds_every_annotated_class_old_or_new() -> None:
    logits = torch.tensor([[9.0, 1.0, 9.0, 2.0]], requires_grad=True)
    loss = Finetune(FinetuneConfig()).loss(logits, torch.tensor([1]), None, MIXED)
    assert loss.item() == pytest.approx(torch.log1p(torch.exp(torch.tensor(1.0))).item())
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[0, [0, 2]].tolist() == [0, 0]  # rows of other classes do not move
    assert logits.grad[0, [1, 3]].abs().min() > 0


def test_seen_scope_holds_all() -> None:
    logits = torch.tensor([[9.0, 1.0, 9.0, 2.0]], requires_grad=True)
    loss = Finetune(FinetuneConfig(scope="seen")).loss(logits, torch.tensor([1]), None, MIXED)
    assert loss.item() == pytest.approx(-logits.detach().log_softmax(1)[0, 1].item())
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.abs().min() > 0


def test_keeps_nothing() -> None:
    assert Finetune(FinetuneConfig()).state() == ({}, {})
    assert Finetune(FinetuneConfig()).penalty({}) is None
