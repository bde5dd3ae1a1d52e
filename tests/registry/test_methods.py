"""What every recipe promises, checked on two tiny rounds of real files, for every kind of task it can learn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sapwood.adapters import ADAPTERS
from sapwood.backbones import create_backbone
from sapwood.backbones.base import fingerprint
from sapwood.costs import stored_bytes
from sapwood.errors import ConfigError, NotMergeable
from sapwood.kinds import KINDS
from sapwood.learner import Learner
from sapwood.methods import METHODS, find_method
from sapwood.objectives import OBJECTIVES

from .helpers import (
    FAST,
    SIZES,
    TINY,
    Rounds,
    answers,
    computed,
    create,
    differing,
    every_method,
    feature_bytes,
    global_random_state,
    learn_two,
    logits,
    same_bits,
    seed_globals,
    task_tensors,
    views,
)

Give = Callable[[str, str], Learner]
GiveRounds = Callable[[str], Rounds]


def frozen(method: str) -> bool:
    return not ADAPTERS[METHODS[method].adapter].trains_backbone


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].all_data])
def test_upper_bounds_are_refused(method: str, kind: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs the pictures of all rounds at once; it runs only in benchmarks"):
        create(tmp_path / "state", method, kind)
    assert not (tmp_path / "state").exists()


OTHERS = [(name, kind) for name in METHODS for kind in KINDS if kind not in METHODS[name].kinds]


@pytest.mark.parametrize(("method", "kind"), OTHERS, ids=["-".join(pair) for pair in OTHERS])
def test_the_other_kind_is_refused_with_the_reason(method: str, kind: str, tmp_path: Path) -> None:
    recipe = METHODS[method]
    part = f"objective {recipe.objective}" if kind not in OBJECTIVES[recipe.objective].kinds else f"head {recipe.head}"
    with pytest.raises(ConfigError, match=f"is not for {kind}: its {part} is not. Methods for it: ") as caught:
        create(tmp_path / "state", method, kind)
    offered = str(caught.value).rpartition(": ")[2].split(", ")
    assert offered
    assert all(find_method(name, kind=kind).kind == kind for name in offered)
    assert not (tmp_path / "state").exists()


@every_method
def test_opened_predicts_the_same(method: str, kind: str, learned: Give, rounds: GiveRounds) -> None:
    learner, folders = learned(method, kind), rounds(kind)
    opened = Learner.open(learner.state.path)
    assert opened.kind.name == kind
    assert opened.classes_ == folders.classes
    images = views(folders.other, kind)
    assert same_bits(logits(opened, images), logits(learner, images))
    assert answers(opened, folders.other) == answers(learner, folders.other)


@every_method
def test_no_picture_depends_on_its_batch(method: str, kind: str, learned: Give, rounds: GiveRounds) -> None:
    learner, images = learned(method, kind), views(rounds(kind).other, kind)
    together = logits(learner, images)
    alone = torch.cat([logits(learner, image[None]) for image in images])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(logits(learner, images[order]), together[order], atol=1e-5, rtol=0)
    assert computed(learner, together)
    assert together.nan_to_num(neginf=0).std(0).max() > 1e-4  # else these pictures could not tell


@every_method
def test_seed_repeats(method: str, kind: str, learned: Give, rounds: GiveRounds, tmp_path: Path) -> None:
    """Once more with other global seeds and with a reopened state between the rounds: bit for bit the same."""
    before = task_tensors(learned(method, kind), 0), task_tensors(learned(method, kind), 1)
    seed_globals(123)
    again = learn_two(tmp_path / "again", method, rounds(kind), kind, reopen=True)
    for task in (0, 1):
        assert differing(before[task], task_tensors(again, task)) == []
    other = create(tmp_path / "other", method, kind, seed=1).learn(rounds(kind).first, task="first", training=FAST)
    assert differing(before[0], task_tensors(other))


@every_method
def test_global_randomness_is_left_alone(
    method: str, kind: str, learned: Give, global_randomness: Callable[[str, str], list[Any]], rounds: GiveRounds
) -> None:
    before, after = global_randomness(method, kind)
    assert after == before
    now = global_random_state()
    answers(learned(method, kind), rounds(kind).other)
    assert global_random_state() == now


@every_method
def test_merging_changes_nothing(method: str, kind: str, learned: Give, rounds: GiveRounds) -> None:
    images = views(rounds(kind).other, kind)
    learner = Learner.open(learned(method, kind).state.path)
    apart = logits(learner, images)
    if learner.network.adapter.mergeable:
        merged = logits(learner.merge(), images)
        torch.testing.assert_close(merged, apart, atol=1e-5, rtol=0)
        assert all(not layer.live for layer in learner.network.adapted)
        learner.network.unmerge()
    else:
        with pytest.raises(NotMergeable):
            learner.merge()
    assert same_bits(logits(learner, images), apart)


@every_method
def test_frozen_weights_stay(method: str, kind: str, learned: Give) -> None:
    learner, original = learned(method, kind), create_backbone(TINY, SIZES[kind])
    moved = fingerprint(learner.network.backbone) != fingerprint(original)
    assert moved == (not frozen(method))
    assert learner.record["backbone"]["sha256"] == original.info.sha256


@every_method
def test_files_hold_what_is_declared(method: str, kind: str, learned: Give) -> None:
    """Bytes on disk: the trained tensors and the statistics that are kept, and little else."""
    learner = learned(method, kind)
    network = learner.network
    for task in learner.record["tasks"]:
        sizes = {
            name.removeprefix(task["folder"] + "/"): entry["bytes"]
            for name, entry in learner.record["files"].items()
            if name.startswith(task["folder"] + "/") and name.endswith(".safetensors")
        }
        header = 1024 + 256 * sum(1 for name in task_tensors(learner) if "backbone" in name or "adapter" in name)
        assert sum(sizes.values()) <= 1.05 * task["declared_bytes"] + header
        assert ("backbone.safetensors" in sizes) == network.adapter.trains_backbone
    backbone = network.backbone.parameters() if network.adapter.trains_backbone else ()
    trained = stored_bytes({"adapter": network.adapter.state()[0]}) + sum(4 * one.numel() for one in backbone)
    anchors = 2 * (trained + 4 * sum(p.numel() for p in network.head.parameters()))
    kept = network.head.declared_bytes() + (anchors if METHODS[method].objective == "ewc" else 0)
    assert learner.record["tasks"][-1]["declared_bytes"] == trained + kept + feature_bytes(learner)
