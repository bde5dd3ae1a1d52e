"""What every recipe promises, checked on two tiny rounds of real files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sapwood.adapters import ADAPTERS
from sapwood.backbones import create_backbone
from sapwood.backbones.base import fingerprint
from sapwood.costs import declared_bytes
from sapwood.errors import ConfigError
from sapwood.learner import Learner
from sapwood.methods import METHODS

from .helpers import (
    FAST,
    NAMES,
    SIZE,
    TINY,
    Rounds,
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

Give = Callable[[str], Learner]
every_method = pytest.mark.parametrize("method", NAMES)


def frozen(method: str) -> bool:
    return not ADAPTERS[METHODS[method].adapter].trains_backbone


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].all_data])
def test_upper_bounds_are_refused(method: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs the pictures of all rounds at once; it runs only in benchmarks"):
        create(tmp_path / "state", method)
    assert not (tmp_path / "state").exists()


@every_method
def test_opened_predicts_the_same(method: str, learned: Give, rounds: Rounds) -> None:
    learner, images = learned(method), views(rounds.other)
    opened = Learner.open(learner.state.path)
    assert opened.classes_ == ("ant", "bee", "cat", "dog")
    assert same_bits(logits(opened, images), logits(learner, images))
    assert opened.predict(rounds.other) == learner.predict(rounds.other)


@every_method
def test_no_picture_depends_on_its_batch(method: str, learned: Give, rounds: Rounds) -> None:
    learner, images = learned(method), views(rounds.other)
    together = logits(learner, images)
    alone = torch.cat([logits(learner, image[None]) for image in images])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(logits(learner, images[order]), together[order], atol=1e-5, rtol=0)
    assert together.isfinite().all()
    assert together.std(0).max() > 1e-4  # else these pictures could not tell


@every_method
def test_seed_repeats(method: str, learned: Give, rounds: Rounds, tmp_path: Path) -> None:
    """Once more with other global seeds and with a reopened state between the rounds: bit for bit the same."""
    before = task_tensors(learned(method), 0), task_tensors(learned(method), 1)
    seed_globals(123)
    again = learn_two(tmp_path / "again", method, rounds, reopen=True)
    for task in (0, 1):
        assert differing(before[task], task_tensors(again, task)) == []
    other = create(tmp_path / "other", method, seed=1).learn(rounds.first, task="first", training=FAST)
    assert differing(before[0], task_tensors(other))


@every_method
def test_global_randomness_is_left_alone(method: str, rounds: Rounds, tmp_path: Path) -> None:
    before = global_random_state()
    learner = create(tmp_path / "state", method).learn(rounds.first, training=FAST)
    learner.predict(rounds.other)
    assert global_random_state() == before


@every_method
def test_merging_changes_nothing(method: str, learned: Give, rounds: Rounds) -> None:
    images = views(rounds.other)
    learner = Learner.open(learned(method).state.path)
    apart = logits(learner, images)
    merged = logits(learner.merge(), images)
    torch.testing.assert_close(merged, apart, atol=1e-5, rtol=0)
    assert all(not layer.live for layer in learner.network.adapted)
    learner.network.unmerge()
    assert same_bits(logits(learner, images), apart)


@every_method
def test_frozen_weights_stay(method: str, learned: Give) -> None:
    learner, original = learned(method), create_backbone(TINY, SIZE)
    moved = fingerprint(learner.network.backbone) != fingerprint(original)
    assert moved == (not frozen(method))
    assert learner.record["backbone"]["sha256"] == original.info.sha256


@every_method
def test_files_hold_what_is_declared(method: str, learned: Give) -> None:
    """Bytes on disk: the trained tensors and the statistics that are kept, and little else."""
    learner = learned(method)
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
    parts = [network.adapter] + ([network.backbone] if network.adapter.trains_backbone else [])
    trained = sum(4 * parameter.numel() for part in parts for parameter in part.parameters())
    anchors = 2 * (trained + 4 * sum(p.numel() for p in network.head.parameters()))
    kept = network.head.declared_bytes() + (anchors if METHODS[method].objective == "ewc" else 0)
    assert learner.record["tasks"][-1]["declared_bytes"] == trained + kept


@pytest.mark.parametrize("method", ["seq-lora", "lora+ewc", "ncm", "ranpac", "full-finetune"])
def test_files_of_a_real_size_hold_what_listings_declare(
    method: str, picture_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Ten classes on a ViT-S/14: the number that ``sapwood methods`` prints, and at most a twentieth more on disk."""
    learner = Learner.create(tmp_path / "state", backbone="random:dinov2-s14", method=method, image_size=SIZE)
    learner.learn(picture_folder([f"class {index}" for index in range(10)], 1), training={**FAST, "epochs": 1})
    (task,) = learner.record["tasks"]
    files = {name: entry["bytes"] for name, entry in learner.record["files"].items() if name.endswith("safetensors")}
    declared = declared_bytes(METHODS[method], 10)
    assert task["declared_bytes"] == declared
    assert declared < sum(files.values()) <= 1.05 * declared


@every_method
def test_known_classes_come_again(method: str, learned: Give, rounds: Rounds, tmp_path: Path) -> None:
    """More pictures of a known class together with a new class, then of known classes alone."""
    shutil.copytree(learned(method).state.path, tmp_path / "state")
    learner = Learner.open(tmp_path / "state").learn(rounds.mixed, task="mixed")
    assert learner.classes_ == ("ant", "bee", "cat", "dog", "eel")
    assert learner.record["tasks"][-1]["classes"] == ["eel"]
    assert learner.record["tasks"][-1]["annotated"] == ["bee", "eel"]
    learner.learn(rounds.other, task="more")
    assert learner.classes_ == ("ant", "bee", "cat", "dog", "eel")
    assert learner.record["tasks"][-1]["classes"] == []
    answers = Learner.open(learner.state.path).predict(rounds.other, top=5)
    assert all(sum(score for _, score in answer.top) == pytest.approx(1, abs=1e-5) for answer in answers)


@every_method
def test_little_is_enough(method: str, picture_folder: Callable[..., Path], tmp_path: Path) -> None:
    """A round of one class, then one with a single picture of each class."""
    learner = create(tmp_path / "state", method)
    learner.learn(picture_folder(["ant"], 3, name="one-class"), training=FAST)
    assert {answer.label for answer in learner.predict(tmp_path / "one-class")} == {"ant"}
    learner.learn(picture_folder(["bee", "cat"], 1, name="one-picture"))
    images = views(tmp_path / "one-picture")
    assert logits(learner, images).isfinite().all()
    assert same_bits(logits(Learner.open(learner.state.path), images), logits(learner, images))
