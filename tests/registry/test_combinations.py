"""Every adapter with every objective and every head, on the kind of task the head is for; illegal ones say why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sapwood.adapters import ADAPTERS
from sapwood.errors import ConfigError
from sapwood.heads import HEADS
from sapwood.kinds import KINDS
from sapwood.learner import Learner
from sapwood.methods import find_method
from sapwood.methods.legality import combinations, misfit
from sapwood.objectives import OBJECTIVES

from .helpers import FAST, Rounds, answers, computed, create, logits, same_bits, views

GiveRounds = Callable[[str], Rounds]
ONE_EPOCH = {**FAST, "epochs": 1}
EVERY = [(one.adapter, one.objective, one.head) for one in combinations()]
LEGAL = [(one.adapter, one.objective, one.head) for one in combinations() if one.reason is None]
# Two whole rounds for each entry of a registry beside plain others; ``test_all_parts.py`` trains the others for a step.
PLAIN = ({"lora"}, {"finetune", "mib"}, {"linear", "dense"})
WHOLE = [parts for parts in LEGAL if sum(part in plain for part, plain in zip(parts, PLAIN, strict=True)) >= 2]


def learn_and_open(path: Path, rounds: GiveRounds, method: str, head: str, settings: dict[str, Any]) -> Learner:
    kind = HEADS[head].kind
    folders = rounds(kind)
    learner = create(path, method, kind, head=head, settings=settings)
    learner.learn(folders.mixed, training=ONE_EPOCH).learn(folders.other)
    images = views(folders.other, kind)
    scores = logits(learner, images)
    grid = (2, 3) if kind == "segmentation" else ()
    unknown = learner.record["settings"]["head"].get("background") == "unknown"
    assert scores.shape == (len(images), len(folders.classes) + 1 + unknown, *grid)
    assert computed(learner, scores)
    opened = Learner.open(path)
    assert same_bits(logits(opened, images), scores)
    assert answers(opened, folders.other) == answers(learner, folders.other)
    return learner


@pytest.mark.parametrize(("adapter", "objective", "head"), WHOLE, ids=["-".join(parts) for parts in WHOLE])
def test_one_of_each_learns_is_opened_and_predicts_the_same(
    adapter: str, objective: str, head: str, rounds: GiveRounds, tmp_path: Path
) -> None:
    learn_and_open(tmp_path / "state", rounds, f"{adapter}+{objective}", head, {})


ILLEGAL = [parts for parts in EVERY if parts not in LEGAL]


@pytest.mark.parametrize(("adapter", "objective", "head"), ILLEGAL, ids=["-".join(parts) for parts in ILLEGAL])
def test_what_does_not_fit_says_why(adapter: str, objective: str, head: str, tmp_path: Path) -> None:
    kind = HEADS[head].kind
    assert misfit(objective, head) is not None
    with pytest.raises(ConfigError, match=f"is not for {kind}: its objective {objective} is not"):
        create(tmp_path / "state", f"{adapter}+{objective}", head=head)
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", HEADS)
def test_a_head_that_was_asked_for_is_taken_or_refused(head: str, kind: str) -> None:
    if HEADS[head].kind == kind:
        assert find_method("lora+finetune", head, kind).head == head
        return
    with pytest.raises(ConfigError, match=f"head '{head}' is for {HEADS[head].kind}, not for {kind}. Heads for it: "):
        find_method("lora+finetune", head, kind)


def test_every_legal_objective_is_there_for_each_kind() -> None:
    legal = {kind: {parts[1] for parts in LEGAL if HEADS[parts[2]].kind == kind} for kind in KINDS}
    assert legal["classification"] == {"finetune", "lwf", "ewc"}
    assert legal["segmentation"] == set(OBJECTIVES)
    assert set(OBJECTIVES) == {*legal["classification"], "mib", "ilt", "plop", "rcil", "sats", "ssul", "dkd"}


OPTIONS: list[tuple[str, str, dict[str, Any]]] = [
    *(("lora", head, settings) for head, settings in (
        ("linear", {"align": "gaussian", "covariance": "shared"}),
        ("cosine", {"align": "gaussian", "drift": "linear"}),
        ("prototype", {"drift": "linear"}),
        ("ridge", {"projection": 48}),
        ("dense", {"decoder": "none"}),
        ("dense", {"decoder": "conv3x3", "stem": "per_task"}),
        ("dense", {"decoder": "aspp", "branches": "parallel"}),
    )),
    *((adapter, "ridge", {"drift": "linear"}) for adapter in ADAPTERS),
]  # fmt: skip


@pytest.mark.parametrize(
    ("adapter", "head", "settings"),
    OPTIONS,
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_options_of_heads_fit(
    adapter: str, head: str, settings: dict[str, Any], rounds: GiveRounds, tmp_path: Path
) -> None:
    learner = learn_and_open(tmp_path / "state", rounds, f"{adapter}+finetune", head, {"head": settings})
    recorded = learner.record["settings"]["head"]
    assert {key: recorded[key] for key in settings} == settings


FIRST = [parts for parts in LEGAL if parts[0] == "lora" and parts[2] in ("linear", "ridge", "dense")]


@pytest.mark.parametrize(
    ("adapter", "objective", "head"), [*FIRST, ("full", "finetune", "ridge"), ("full", "mib", "dense")]
)
def test_adapting_in_the_first_round_only(
    adapter: str, objective: str, head: str, rounds: GiveRounds, tmp_path: Path
) -> None:
    settings: dict[str, dict[str, Any]] = {"training": {"adapt": "first"}}
    if HEADS[head].kind == "classification":
        settings["objective"] = {"scope": "seen"}
    learner = learn_and_open(tmp_path / "state", rounds, f"{adapter}+{objective}", head, settings)
    first, second = (task["trainable_parameters"] for task in learner.record["tasks"])
    assert second < first


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("head", ["linear", "dense"])
def test_a_fresh_adapter_for_every_round(objective: str, head: str, rounds: GiveRounds, tmp_path: Path) -> None:
    if ("lora", objective, head) not in LEGAL:
        return
    settings: dict[str, dict[str, Any]] = {"adapter": {"reinit": True}}
    if objective == "ssul":  # else the adapter learns in the first round only
        settings["objective"] = {"freeze_after_first": False}
    learner = learn_and_open(tmp_path / "state", rounds, f"lora+{objective}", head, settings)
    files = {name for name in learner.record["files"] if name.endswith("adapter.safetensors")}
    assert files == {f"{task['folder']}/adapter.safetensors" for task in learner.record["tasks"]}
    assert len(files) == 2
