"""SSUL and DKD through real rounds: what they leave alone, what they learn, and that it is there after opening."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sapwood.errors import ConfigError
from sapwood.learner import Learner

MaskFolder = Callable[..., Path]
RESNET = "random:resnet-tiny"
TRAINING = {"epochs": 15, "batch_size": 4, "precision": "fp32", "lr": 1e-2, "augment": False}


def begin(place: Path, method: str, backbone: str = "random:dinov2-tiny", **settings: Any) -> Learner:
    size = (28, 42) if "dino" in backbone else (64, 96)
    return Learner.create(
        place, method=method, backbone=backbone, kind="segmentation", image_size=size, settings=settings
    )


def learned(learner: Learner, folder: Path, **training: Any) -> dict[str, Tensor]:
    """What the network holds after a round."""
    learner.learn(folder, training={**TRAINING, **training})
    return {name: value.clone() for name, value in learner.network.state_dict().items()}


def with_saliency(folder: Path) -> Path:
    """Maps that say that whatever is not grey stands out."""
    (folder / "saliency").mkdir()
    for file in (folder / "images").iterdir():
        pixels = np.asarray(Image.open(file).convert("RGB")).astype(int)
        Image.fromarray(np.where(np.ptp(pixels, 2) > 30, 200, 0).astype(np.uint8)).save(folder / "saliency" / file.name)
    return folder


def score(learner: Learner, folder: Path, name: str) -> float:
    value = learner.evaluate(folder).as_json()["per_class"][name]
    assert value is not None
    return float(value)


def answers(learner: Learner, folder: Path) -> list[bytes]:
    return [answer.mask.tobytes() for answer in learner.predict(folder / "images")]


def test_ssul(mask_folder: MaskFolder, tmp_path: Path) -> None:
    """One stem a round, saliency from files: the old classes stay as they are, bit for bit, and the new one comes."""
    first = with_saliency(mask_folder(["ant", "bee"], 8, name="a"))
    second = with_saliency(mask_folder(["cat"], 8, also=["bee"], name="b"))
    learner = begin(tmp_path / "state", "clora+ssul", head={"stem": "per_task"})
    before = learned(learner, first)
    old = score(learner, first, "ant")
    assert old > 0.6
    after = learned(learner, second)
    moved = {
        name for name, value in before.items() if name in after and not torch.equal(value, after[name][: len(value)])
    }
    assert moved == {
        "head.classifier.weight",
        "head.classifier.bias",
        "head.unknown.weight",
        "head.unknown.bias",
        "head.stems.unknown.weight",
        "head.stems.background.weight",
    }
    for name in ("head.classifier.weight", "head.classifier.bias"):
        assert torch.equal(after[name][1:3], before[name][1:])
        assert (after[name][0] - before[name][0]).abs().max() < 1e-4
    assert learner.record["tasks"][1]["trainable_parameters"] < learner.record["tasks"][0]["trainable_parameters"]
    assert score(learner, second, "cat") > 0.5
    assert score(learner, first, "ant") > old - 0.1
    opened = Learner.open(tmp_path / "state")
    assert answers(opened, second) == answers(learner, second)
    third = with_saliency(mask_folder(["cat", "ant"], 4, name="c", seed=3))
    again = learned(opened, third, epochs=1)
    assert not torch.equal(again["head.classifier.weight"][1:3], after["head.classifier.weight"][1:3])
    assert not torch.equal(again["head.decoder.weight"], after["head.decoder.weight"])


@pytest.mark.parametrize("start", ["official", "preserve"])
def test_ssul_leaves_parallel_branches_merged(start: str, mask_folder: MaskFolder, tmp_path: Path) -> None:
    """What stands still is not opened either, and in a round in which everything learns it is."""
    first, second = mask_folder(["ant", "bee"], 4, name="a"), mask_folder(["cat"], 4, name="b")
    head, objective = {"branches": "parallel", "branch_start": start}, {"unknown": "background"}
    learner = begin(tmp_path / "state", "clora+ssul", head=head, objective=objective)
    learned(learner, first, epochs=3)
    views = torch.randint(256, (2, 28, 42, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = learner.network.predict(views).detach()
    held = {name: value for name, value in learned(learner, second, epochs=3).items() if ".old." in name}
    after = learner.network.predict(views).detach()
    assert torch.equal(after[:, 1:3], before[:, 1:3])
    opened = Learner.open(tmp_path / "state")
    assert torch.equal(opened.network.predict(views), after)
    again = learned(opened, mask_folder(["cat", "ant"], 4, name="c", seed=3), epochs=1)
    assert held
    assert not any(torch.equal(again[name], value) for name, value in held.items())


def test_dkd(mask_folder: MaskFolder, tmp_path: Path) -> None:
    first, second = mask_folder(["ant", "bee"], 8, name="a"), mask_folder(["cat"], 8, also=["bee"], name="b")
    learner = begin(tmp_path / "state", "clora+dkd")
    learned(learner, first)
    old = score(learner, first, "ant")
    assert old > 0.6
    learned(learner, second)
    assert score(learner, second, "cat") > 0.5
    assert score(learner, first, "ant") > old - 0.1
    assert answers(Learner.open(tmp_path / "state"), second) == answers(learner, second)


def test_a_network_without_attention(mask_folder: MaskFolder, tmp_path: Path) -> None:
    """Saliency must then come from files, or all background be unknown."""
    folder = mask_folder(["ant"], 4, size=(64, 96))
    with pytest.raises(ConfigError, match=r"shows no attention maps.*folder saliency"):
        learned(begin(tmp_path / "one", "clora+ssul", RESNET), folder, epochs=1)
    learned(begin(tmp_path / "two", "clora+ssul", RESNET, objective={"unknown": "background"}), folder, epochs=1)
    learner = begin(tmp_path / "three", "clora+ssul", RESNET)
    learned(learner, with_saliency(folder), epochs=1)
    assert answers(Learner.open(tmp_path / "three"), folder) == answers(learner, folder)
