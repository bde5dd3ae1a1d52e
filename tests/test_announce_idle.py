"""Settings of training steps, given to a method that makes none; names that were another class's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sapwood.learner import Learner
from sapwood.repair_names import rename_class


@pytest.mark.parametrize(
    ("method", "training", "said"),
    [
        ("ridge", {"epochs": 30, "lr": 0.01}, "changes nothing: epochs 30, lr 0.01"),
        ("ncm", {"validation": 0.2, "batch_size": 4, "workers": 0}, None),
        ("seq-lora", {"epochs": 30}, None),
        ("lora+ranpac", {}, None),
    ],
)
def test_what_is_never_used_is_said(
    method: str, training: dict[str, Any], said: str | None, tmp_path: Path, picture_folder: Callable[..., Path]
) -> None:
    learner = Learner.create(tmp_path / "state", backbone="random:dinov2-tiny", method=method, image_size=28)
    remarks = learner.announce(picture_folder(["ant", "bee"], 4), training=training).remarks
    found = [remark.partition("so this ")[2] for remark in remarks if "step by step" in remark]
    assert found == ([said] if said else [])


def test_it_is_said_once(tmp_path: Path, picture_folder: Callable[..., Path]) -> None:
    learner = Learner.create(tmp_path / "state", backbone="random:dinov2-tiny", method="ridge", image_size=28)
    learner.learn(picture_folder(["ant", "bee"], 4), training={"epochs": 30})
    more = picture_folder(["cat"], 4, name="more")
    assert not [remark for remark in learner.announce(more).remarks if "step by step" in remark]
    (remark,) = (each for each in learner.announce(more, training={"lr": 0.5}).remarks if "step by step" in each)
    assert remark.endswith("changes nothing: lr 0.5")


def test_a_name_that_a_class_had_before(tmp_path: Path, picture_folder: Callable[..., Path]) -> None:
    learner = Learner.create(tmp_path / "state", backbone="random:dinov2-tiny", method="ridge", image_size=28)
    learner.learn(picture_folder(["ant", "bee"], 4))
    rename_class(learner.state, "ant", "emmet")
    for name, said in (("Ant", ["'Ant' (now 'emmet')"]), ("wasp", [])):
        remarks = learner.announce(picture_folder([name, "bee"], 4, name=f"more-{name}", seed=7)).remarks
        found = [each for each in remarks if each.startswith("a known class was called so before: ")]
        assert [each.split(": ")[1].split("; ")[0] for each in found] == said


@pytest.mark.parametrize("maps", [True, False])
def test_where_saliency_comes_from(maps: bool, tmp_path: Path, mask_folder: Callable[..., Path]) -> None:
    folder = mask_folder(["road"], 3, size=(28, 42))
    if maps:
        shutil.copytree(folder / "masks", folder / "saliency")
    options = {"backbone": "random:dinov2-tiny", "image_size": (28, 42), "kind": "segmentation"}
    for method, count in (("clora+ssul", 1), ("clora+mib", 0)):
        remarks = Learner.create(tmp_path / method, method=method, **options).announce(folder).remarks
        found = [remark for remark in remarks if remark.startswith("what stands out is told by ")]
        assert [("the maps in saliency/" in remark, "own attention" in remark) for remark in found] == [
            (maps, not maps)
        ] * count
