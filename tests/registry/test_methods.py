"""What every recipe promises, checked on two tiny rounds of real files, for every kind of task it can learn."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sapwood.adapters import ADAPTERS
from sapwood.backbones import create_backbone
from sapwood.backbones.base import fingerprint
from sapwood.costs import declared_bytes, stored_bytes
from sapwood.errors import ConfigError, NotMergeable
from sapwood.export import export
from sapwood.kinds import KINDS
from sapwood.learner import Learner
from sapwood.methods import METHODS, find_method
from sapwood.objectives import OBJECTIVES

from .exports import check_nothing_left, opened_answers, pixel_values, unmerged
from .helpers import (
    FAST,
    PAIRS,
    SIZES,
    TINY,
    Rounds,
    answers,
    computed,
    create,
    differing,
    global_random_state,
    learn_two,
    logits,
    same_bits,
    seed_globals,
    task_tensors,
    views,
)
from .peft_exports import adapted, card_scores, own_tokens, stock

Give = Callable[[str, str], Learner]
GiveRounds = Callable[[str], Rounds]
every_method = pytest.mark.parametrize(("method", "kind"), PAIRS, ids=["-".join(pair) for pair in PAIRS])


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
def test_global_randomness_is_left_alone(method: str, kind: str, rounds: GiveRounds, tmp_path: Path) -> None:
    before = global_random_state()
    learner = create(tmp_path / "state", method, kind).learn(rounds(kind).first, training={**FAST, "epochs": 1})
    answers(learner, rounds(kind).other)
    assert global_random_state() == before


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
def test_leaves_as_a_folder_of_transformers(
    method: str, kind: str, learned: Give, rounds: GiveRounds, tmp_path: Path
) -> None:
    learner, out = learned(method, kind), tmp_path / "out"
    if not learner.network.adapter.mergeable:
        with pytest.raises(NotMergeable, match=r"--task N \(1\.\.2\), or everything with --to onnx"):
            export(learner.state.path, out, "merged")
        assert not out.exists()
        return
    made = export(learner.state.path, out, "merged")
    assert made.max_difference <= 1e-5
    pixels = pixel_values(rounds(kind).other, SIZES[kind])
    torch.testing.assert_close(opened_answers(out, pixels), unmerged(learner, pixels), atol=1e-5, rtol=1e-5)
    check_nothing_left(out, TINY, "dinov2.", learner.classes_)


@every_method
def test_leaves_as_an_adapter_for_peft(
    method: str, kind: str, learned: Give, rounds: GiveRounds, tmp_path: Path
) -> None:
    learner, out = learned(method, kind), tmp_path / "out"
    adapter = METHODS[method].adapter
    refusals = {
        "none": (ConfigError, "the adapter none has not changed the backbone.* --to merged"),
        "full": (ConfigError, r"are no layer's weight .* cannot hold that; take --to merged"),
    }
    if not learner.network.adapter.mergeable or adapter in refusals:
        error, words = refusals.get(adapter, (NotMergeable, r"--task N \(1\.\.2\), or everything with --to onnx"))
        with pytest.raises(error, match=words):
            export(learner.state.path, out, "peft")
        assert not out.exists()
        return
    assert export(learner.state.path, out, "peft").max_difference <= 1e-5
    pixels, model = pixel_values(rounds(kind).other, SIZES[kind]), stock(TINY, tmp_path / "base")
    with torch.no_grad():
        before = model(pixel_values=pixels).last_hidden_state
        loaded = adapted(model, out)
        tokens = loaded(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(tokens, own_tokens(learner, pixels), atol=1e-5, rtol=0)
    assert (tokens - before).abs().max() > 1e-3  # it does something
    scores = unmerged(learner, pixels).softmax(1)
    torch.testing.assert_close(card_scores(loaded, out, pixels), scores, atol=1e-5, rtol=0)


@every_method
def test_frozen_weights_stay(method: str, kind: str, learned: Give) -> None:
    learner, original = learned(method, kind), create_backbone(TINY, SIZES[kind])
    moved = fingerprint(learner.network.backbone) != fingerprint(original)
    assert moved == (not frozen(method))
    assert learner.record["backbone"]["sha256"] == original.info.sha256


def feature_bytes(learner: Learner) -> int:
    """Of the last round's pictures, kept by heads that predict from statistics on a backbone that stays."""
    task, parts = learner.record["tasks"][-1], learner.record["parts"]
    stays = parts["adapter"] == "none" or learner.record["settings"]["training"]["adapt"] == "first"
    return 4 * task["images"] * learner.network.head.dim if parts["head"] in ("prototype", "ridge") and stays else 0


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


@pytest.mark.parametrize("method", ["seq-lora", "lora+ewc", "ncm", "ranpac", "full-finetune", "clora+mib"])
def test_files_of_a_real_size_hold_what_listings_declare(
    method: str, picture_folder: Callable[..., Path], mask_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """On a ViT-S/14: the number that ``sapwood methods`` prints, and at most a twentieth more on disk."""
    kind = METHODS[method].kind
    learner = Learner.create(tmp_path / "state", backbone="random:dinov2-s14", method=method, image_size=28)
    if kind == "segmentation":
        data = mask_folder(["ant", "bee", "cat", "dog"], 2)
    else:
        data = picture_folder([f"class {index}" for index in range(10)], 1)
    learner.learn(data, training={**FAST, "epochs": 1})
    (task,) = learner.record["tasks"]
    files = {name: entry["bytes"] for name, entry in learner.record["files"].items() if name.endswith("safetensors")}
    declared = declared_bytes(METHODS[method], len(learner.classes_))
    assert task["declared_bytes"] == declared + feature_bytes(learner)
    assert task["declared_bytes"] < sum(files.values()) <= 1.05 * task["declared_bytes"]
    if method == "clora+mib":
        assert sum(files.values()) <= 1.05 * 4 * task["trainable_parameters"]


@every_method
def test_known_classes_come_again(method: str, kind: str, learned: Give, rounds: GiveRounds, tmp_path: Path) -> None:
    """More pictures of a known class together with a new class, then of known classes alone."""
    shutil.copytree(learned(method, kind).state.path, tmp_path / "state")
    folders, one_epoch = rounds(kind), {"epochs": 1}
    learner = Learner.open(tmp_path / "state").learn(folders.mixed, task="mixed", training=one_epoch)
    assert learner.classes_ == (*folders.classes, "eel")
    assert learner.record["tasks"][-1]["classes"] == ["eel"]
    assert learner.record["tasks"][-1]["annotated"] == ["bee", "eel"]
    learner.learn(folders.other, task="more")
    assert learner.classes_ == (*folders.classes, "eel")
    assert learner.record["tasks"][-1]["classes"] == []
    opened = Learner.open(learner.state.path)
    assert answers(opened, folders.other) == answers(learner, folders.other)
    if kind == "classification":
        answered = opened.predict(folders.other, top=5)
        assert all(sum(score for _, score in answer.top) == pytest.approx(1, abs=1e-5) for answer in answered)


@every_method
def test_little_is_enough(method: str, kind: str, rounds: GiveRounds, tmp_path: Path) -> None:
    """A round of one class, then one with a single picture of each class."""
    folders = rounds(kind)
    learner = create(tmp_path / "state", method, kind)
    learner.learn(folders.single, training={**FAST, "epochs": 1})
    if kind == "classification":
        assert {answer.label for answer in learner.predict(folders.single)} == {"ant"}
    else:
        assert learner.classes_ == ("background", "ant")
    learner.learn(folders.little)
    images = views(folders.little, kind)
    assert computed(learner, logits(learner, images))
    assert same_bits(logits(Learner.open(learner.state.path), images), logits(learner, images))
