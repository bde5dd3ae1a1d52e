"""The cost of a state folder against its own network, weights and all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sapwood.backbones import create_backbone
from sapwood.costs import state_cost
from sapwood.errors import BackboneError, ConfigError, StateError
from sapwood.learner import Learner

FAST = {"epochs": 1, "batch_size": 4, "validation": 0.0, "precision": "fp32"}
SIZE = 28


@pytest.fixture
def learned(picture_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., Learner]:
    """A state of two rounds of two classes on a local folder whose weights are gone afterwards."""

    def learn(method: str, settings: dict[str, dict[str, object]] | None = None) -> Learner:
        folder = tmp_path / "backbone"
        create_backbone("random:dinov2-tiny").model.save_pretrained(folder)
        learner = Learner.create(
            tmp_path / "state", backbone=str(folder), method=method, image_size=SIZE, settings=settings
        )
        learner.learn(picture_folder(["ant", "bee"], 2, name="one"), training=FAST)
        learner.learn(picture_folder(["cat", "dog"], 2, name="two"), training=FAST)
        learner.network  # noqa: B018 - read while the weights are there
        (folder / "model.safetensors").unlink()
        return learner

    return learn


@pytest.mark.parametrize("method", ["seq-lora", "full-finetune", "ncm", "ranpac", "seq-lora+ridge"])
def test_a_state_costs_what_its_network_costs(method: str, learned: Callable[..., Learner]) -> None:
    learner = learned(method)
    cost = state_cost(learner.state.path)
    network, task = learner.network, learner.record["tasks"][-1]
    solved = sum(tensor.numel() for tensor in network.head.solved_tensors().values())
    if method == "ncm":
        solved = 4 * 32
    assert cost.trainable_parameters == task["trainable_parameters"] + solved
    head = solved or sum(parameter.numel() for parameter in network.head.parameters())
    assert cost.parameters == sum(parameter.numel() for parameter in network.backbone.parameters()) + head
    assert cost.bytes_per_task == task["declared_bytes"]
    assert cost.size == (SIZE, SIZE)
    assert cost.gmacs_merged is not None
    assert (cost.gmacs > cost.gmacs_merged) == ("lora" in method)


def test_settings_of_the_state_count(learned: Callable[..., Learner]) -> None:
    learner = learned("seq-lora", {"adapter": {"rank": 2, "targets": ["q", "fc1"], "blocks": "1"}})
    assert state_cost(learner.state.path).fitted["adapter"] == 2 * (32 + 32) + 2 * (32 + 128)


@pytest.mark.parametrize(
    ("backbone", "size"), [("random:sam-tiny", (48, 48)), ("random:mit-tiny", (32, 64))], ids=["sam", "mit"]
)
def test_a_state_of_masks(backbone: str, size: tuple[int, int], tmp_path: Path) -> None:
    """Background and one class a round: K = 3 channels after two."""
    learner = Learner.create(tmp_path / "state", backbone=backbone, method="clora+mib", image_size=size)
    for value in (1, 2):
        learner.learn(squares(tmp_path / f"round{value}", value), training=FAST)
    cost, task = state_cost(learner.state.path), learner.record["tasks"][-1]
    dim = learner.network.backbone.info.dim
    assert cost.size == size
    assert (cost.network["decoder"], cost.network["classifiers"]) == (dim * (dim + 1), 3 * (dim + 1))
    assert cost.trainable_parameters == task["trainable_parameters"]
    assert cost.bytes_per_task == task["declared_bytes"] == 4 * cost.trainable_parameters
    assert cost.gmacs_merged is not None
    assert cost.gmacs > cost.gmacs_merged


def squares(folder: Path, value: int) -> Path:
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        mask = np.zeros((64, 64), np.uint8)
        mask[:32, :32] = value
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{index}.png")
    (folder / "classes.json").write_text(json.dumps({"background": 0, f"class {value}": value}))
    return folder


def test_a_state_without_rounds(tmp_path: Path) -> None:
    Learner.create(tmp_path / "state", backbone="random:dinov2-tiny", method="ncm")
    with pytest.raises(ConfigError, match=r"state: has learned nothing yet.*learn a round first"):
        state_cost(tmp_path / "state")


def test_no_state(tmp_path: Path) -> None:
    with pytest.raises(StateError):
        state_cost(tmp_path)


def test_a_backbone_that_is_gone(learned: Callable[..., Learner], tmp_path: Path) -> None:
    learner = learned("ncm")
    shutil.rmtree(tmp_path / "backbone")
    with pytest.raises(BackboneError, match="no such folder"):
        state_cost(learner.state.path)
