"""What every combination of the dense head's options must hold, and what single options mean."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, save

from sapwood.backbones.base import Tokens
from sapwood.errors import StateError
from sapwood.heads.dense import DenseConfig, DenseHead
from sapwood.task import Task

DIM, GRID = 4, (3, 5)

OPTIONS: list[dict[str, Any]] = [
    {},
    {"decoder": "none"},
    {"decoder": "aspp"},
    {"background": "unknown"},
    {"background": "auxiliary", "decoder": "conv3x3"},
    {"stem": "per_task"},
    {"stem": "per_task", "background": "unknown"},
    {"stem": "per_task", "background": "auxiliary", "decoder": "none"},
    {"branches": "parallel"},
    {"branches": "parallel", "branch_start": "preserve", "decoder": "conv3x3"},
    {"branches": "parallel", "decoder": "aspp"},
    {
        "branches": "parallel",
        "decoder": "aspp",
        "branch_start": "preserve",
        "stem": "per_task",
        "background": "unknown",
    },
]
MOMENTS = ("grown", "learned", "after", "again", "learned again", "after again")
every_option = pytest.mark.parametrize("options", OPTIONS, ids=[",".join(each.values()) or "all" for each in OPTIONS])


def tokens(count: int = 3, seed: int = 0) -> Tokens:
    patches = torch.randn(count, GRID[0] * GRID[1], DIM, generator=torch.Generator().manual_seed(seed))
    return Tokens(patches.mean(1), patches, GRID)


def task(index: int) -> Task:
    new = ((1, 2), (3, 4))[index]
    return Task(index, f"round {index}", new, new, new[-1] + 1, 0)


def learn(head: DenseHead, steps: int = 2) -> None:
    optimizer = torch.optim.SGD([each for each in head.parameters() if each.requires_grad], 0.05)
    with head.training_mode(True):
        for step in range(steps):
            optimizer.zero_grad()
            head(tokens(seed=step)).square().mean().backward()
            optimizer.step()


def begun(head: DenseHead, index: int) -> None:
    head.grow((3, 2)[index], torch.Generator().manual_seed(index))
    head.before_task(task(index))


def until(moment: str, options: dict[str, Any]) -> DenseHead:
    """A head at one of the moments of a life of two rounds."""
    head = DenseHead(DenseConfig(**options), DIM)
    steps = [
        lambda: begun(head, 0),
        lambda: learn(head),
        lambda: head.after_task(task(0)),
        lambda: begun(head, 1),
        lambda: learn(head),
        lambda: head.after_task(task(1)),
    ]
    for step in steps[: MOMENTS.index(moment) + 1]:
        step()
    return head


def reopened(head: DenseHead) -> DenseHead:
    tensors, meta = head.state()
    again = DenseHead(head.config, DIM)
    again.load(load(save(tensors)), json.loads(json.dumps(meta)))
    return again


@every_option
@pytest.mark.parametrize("moment", MOMENTS)
def test_save_and_load_predict_the_same(options: dict[str, Any], moment: str) -> None:
    head = until(moment, options)
    again = reopened(head)
    assert again.classes == head.classes
    assert torch.equal(again(tokens()), head(tokens()))
    one, two = head.state(), again.state()
    assert one[1] == two[1]
    assert one[0].keys() == two[0].keys()
    assert all(torch.equal(value, two[0][name]) for name, value in one[0].items())


@every_option
def test_a_reopened_head_goes_on_as_one_that_was_kept(options: dict[str, Any]) -> None:
    kept, again = (until("after", options), reopened(until("after", options)))
    for head in (kept, again):
        begun(head, 1)
        learn(head)
        head.after_task(task(1))
    assert torch.equal(again(tokens()), kept(tokens()))


@every_option
def test_what_is_missing_or_of_another_shape_is_named(options: dict[str, Any]) -> None:
    tensors, meta = until("after", options).state()
    for missing, value in tensors.items():
        with pytest.raises(StateError, match=f"lacks the tensor '{missing}'"):
            DenseHead(DenseConfig(**options), DIM).load({k: v for k, v in tensors.items() if k != missing}, meta)
        other = {**tensors, missing: torch.cat([value.reshape(-1), value.reshape(-1)])}
        with pytest.raises(StateError, match=f"tensor '{missing}' is "):
            DenseHead(DenseConfig(**options), DIM).load(other, meta)


@every_option
def test_growing_keeps_all_that_was_there_bit_for_bit(options: dict[str, Any]) -> None:
    head = until("after", options)
    before, logits = head.state()[0], head(tokens())
    head.grow(2, torch.Generator().manual_seed(1))
    head.grow(0, torch.Generator())
    after = head.state()[0]
    assert head.classes == 5
    for name, value in before.items():
        assert torch.equal(after[name][: len(value)] if value.ndim else after[name], value), name
    extra = int(options.get("background") == "unknown")
    found = head(tokens())
    assert found.shape == (3, 5 + extra, *GRID)
    torch.testing.assert_close(found[:, :3], logits[:, :3], atol=1e-6, rtol=0)
    if extra:
        torch.testing.assert_close(found[:, -1], logits[:, -1], atol=1e-6, rtol=0)


@every_option
@pytest.mark.parametrize("moment", ["learned", "after again"])
def test_no_picture_depends_on_its_batch(options: dict[str, Any], moment: str) -> None:
    head = until(moment, options)
    together = head.decision(head(tokens(4)))
    patches = tokens(4).patches
    alone = [head.decision(head(Tokens(row.mean(0)[None], row[None], GRID))) for row in patches]
    torch.testing.assert_close(torch.cat(alone), together, atol=1e-5, rtol=0)
    assert together.shape[1] == head.classes


@every_option
def test_merging_does_not_change_what_is_drawn(options: dict[str, Any]) -> None:
    head = until("learned again", options)
    before = head(tokens())
    head.after_task(task(1))
    torch.testing.assert_close(head(tokens()), before, atol=1e-5, rtol=0)


@every_option
def test_the_seed_decides_and_the_global_generator_rests(options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    before, one = torch.get_rng_state(), until("after again", options)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    two = until("after again", options).state()[0]
    assert all(torch.equal(value, two[name]) for name, value in one.state()[0].items())


@every_option
def test_a_copy_stands_alone(options: dict[str, Any]) -> None:
    head = until("after", options)
    teacher = copy.deepcopy(head).requires_grad_(False)
    before = teacher(tokens())
    begun(head, 1)
    learn(head)
    assert torch.equal(teacher(tokens()), before)
    assert torch.equal(teacher.train()(tokens()), before)  # frozen: nothing drops out, no batch counts


@every_option
def test_full_precision_under_autocast(options: dict[str, Any]) -> None:
    head = until("after", options)
    low = Tokens(tokens().pooled, tokens().patches.bfloat16(), GRID)
    with torch.autocast("cpu", torch.bfloat16):
        maps = head.decode(low)
        logits = head.classify(maps)
    assert maps.dtype == logits.dtype == torch.float32
    assert maps.shape == (3, head.width, *GRID)
    assert torch.equal(logits, head(Tokens(low.pooled, low.patches.float(), GRID)))


def test_stems_as_written_out() -> None:
    head = until("after again", {"stem": "per_task", "background": "unknown", "decoder": "none"})
    assert head.stems is not None
    assert list(head.stems) == ["background", "unknown", "group1", "group2"]
    maps, weight, bias = head.decode(tokens()).double(), head.classifier.weight.double(), head.classifier.bias.double()
    found = head.classify(maps.float())
    for channel, name in enumerate(["background", "group1", "group1", "group2", "group2", "unknown"]):
        stem = head.stem_of(channel)
        assert stem is head.stems[name]
        assert stem is not None
        assert stem.norm is not None
        norm = stem.norm.double()
        out = F.conv2d(F.pad(maps, [1] * 4), stem.weight.double())
        out = (out - norm.mean[:, None, None]) / (norm.var[:, None, None] + 1e-5).sqrt()
        out = (out * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp(min=0)
        row, shift = (weight[channel], bias[channel]) if channel < 5 else (head.unknown.weight[0], head.unknown.bias)  # type: ignore[union-attr]
        expected = torch.einsum("bchw,c->bhw", out, row.double()) + shift.double()
        torch.testing.assert_close(found[:, channel].double(), expected, atol=1e-5, rtol=1e-5)
        norm.float()
    with pytest.raises(IndexError, match=r"0\.\.5, got 6"):
        head.stem_of(6)
    assert until("grown", {}).stem_of(0) is None


def test_a_frozen_stem_stays_while_others_learn() -> None:
    head = until("again", {"stem": "per_task"})
    assert head.stems is not None
    for name in ("background", "group1"):
        head.stems[name].requires_grad_(False)
    before = head.state()[0]
    learn(head)
    changed = {name for name, value in head.state()[0].items() if not torch.equal(value, before[name])}
    assert not any(name.startswith(("stems.background", "stems.group1")) for name in changed)
    assert {"stems.group2.weight", "stems.group2.norm.mean", "stems.group2.norm.var"} <= changed


@pytest.mark.parametrize("stem", ["shared", "per_task"])
def test_the_auxiliary_classifier_teaches_the_decoder_nothing(stem: str) -> None:
    head = until("learned", {"background": "auxiliary", "stem": stem})
    head.zero_grad()
    head(tokens())[:, 0].square().sum().backward()
    assert head.decoder is not None
    assert all(each.grad is None or not each.grad.any() for each in head.decoder.parameters())
    grad = head.classifier.weight.grad
    assert grad is not None
    assert grad[0].abs().max() > 0
    head(tokens())[:, 1:].square().sum().backward()
    assert all(each.grad is not None and each.grad.any() for each in head.decoder.parameters())


def test_the_unknown_class_is_no_class() -> None:
    head = until("grown", {"background": "unknown"})
    assert head.unknown is not None
    assert (head.classes, head.unknown.classes) == (3, 1)
    maps = head.decode(tokens())
    expected = torch.einsum("bchw,c->bhw", maps, head.unknown.weight[0]) + head.unknown.bias
    torch.testing.assert_close(head.classify(maps)[:, -1], expected, atol=1e-5, rtol=0)


def test_defaults_store_what_they_always_stored() -> None:
    tensors, meta = until("after again", {}).state()
    assert sorted(tensors) == ["classifier.bias", "classifier.weight", "decoder.bias", "decoder.weight"]
    assert meta == {"classes": 5, "temperature": 1.0}
    assert [name for name, _ in until("grown", {}).named_parameters()][:2] == ["classifier.weight", "classifier.bias"]


def test_after_a_round_only_what_is_needed_is_stored() -> None:
    preserving = until("after", {"branches": "parallel", "branch_start": "preserve"}).state()[0]
    assert sorted(name for name in preserving if name.startswith("decoder")) == [
        "decoder.forwards",
        "decoder.old.bias",
        "decoder.old.weight",
    ]
    assert "decoder.new.norm.mean" in until("after", {"branches": "parallel"}).state()[0]
