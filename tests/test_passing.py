"""Passes that only compute features: stopped or killed, they go on with what they have kept, bit for bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sapwood.data.pictures import Picture, Pictures
from sapwood.data.rows import FileRows
from sapwood.data.store import PictureStore
from sapwood.errors import Interrupted
from sapwood.learner import Learner
from sapwood.passing import Keeping, run_pass, stored_pass
from sapwood.state import State, TrainingFolder

Learning = Callable[..., tuple[int, list[dict[str, Any]]]]  # the fixture ``learning``


def store(count: int) -> PictureStore:
    rng = torch.Generator().manual_seed(1)
    views = torch.randint(0, 256, (count, 20, 20, 3), generator=rng, dtype=torch.uint8)
    return PictureStore(Pictures([Picture(f"{n}.png", view.numpy(), "ant") for n, view in enumerate(views)]), 20)


def function(images: Tensor) -> Tensor:
    return images.float().mean((1, 2))


class StopAt:
    """Asks to stop before the batch of a number."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Interrupted("stopped")


@pytest.fixture
def folder(tmp_path: Path) -> TrainingFolder:
    training = State.create(tmp_path / "state", {}).training
    training.begin({})
    return training


@pytest.mark.parametrize("seconds", [0.0, 60.0])
@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_stopped_pass_goes_on(number: int, seconds: float, folder: TrainingFolder) -> None:
    pictures, options = store(11), {"image_size": 20, "batch_size": 3, "what": "some features"}
    whole = run_pass(pictures, function, **options)
    with pytest.raises(Interrupted):
        run_pass(pictures, function, keeping=Keeping(folder, seconds), check=StopAt(number), **options)
    kept = folder.kept_rows("some features")
    assert (0 if kept is None else len(kept)) == 3 * number
    assert folder.kept_rows("features") is None
    seen = 0

    def counting(images: Tensor) -> Tensor:
        nonlocal seen
        seen += len(images)
        return function(images)

    assert torch.equal(run_pass(pictures, counting, keeping=Keeping(folder, seconds), **options), whole)
    assert seen == 11 - 3 * number
    if seconds == 0:  # all of it is kept by now
        seen = 0
        assert torch.equal(run_pass(pictures, counting, keeping=Keeping(folder, seconds), **options), whole)
        assert seen == 0
    folder.clear()
    assert not folder.path.exists()


def test_a_damaged_part_is_computed_again(folder: TrainingFolder) -> None:
    pictures, options = store(7), {"image_size": 20, "batch_size": 2}
    whole = run_pass(pictures, function, keeping=Keeping(folder, 0.0), **options)
    second = sorted(folder.path.glob("rows-*"))[1]
    second.write_bytes(second.read_bytes()[:-1] + b"x")
    found = folder.kept_rows("features")
    assert found is not None
    assert len(found) == 2
    assert torch.equal(run_pass(pictures, function, keeping=Keeping(folder, 0.0), **options), whole)
    found = folder.kept_rows("features")
    assert found is not None
    assert len(found) == 7


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes here are forked")
def test_a_killed_round_does_not_compute_its_features_twice(
    learning: Learning, picture_folder: Callable[..., Path], tmp_path: Path
) -> None:
    data, often = picture_folder(["ant", "bee"], 40), {"checkpoint_seconds": 1e-3, "batch_size": 32}
    for name in ("whole", "killed"):
        Learner.create(tmp_path / name, backbone="random:dinov2-tiny", method="ncm", image_size=28)
    assert learning(tmp_path / "whole", data, training=often)[0] == 0
    assert learning(tmp_path / "killed", data, training=often, die="features 3")[0] == -signal.SIGKILL
    status, said = learning(tmp_path / "killed", data, training=often)
    assert status == 0
    assert next(facts["done"] for facts in said if facts.get("doing") == "features") == 64
    one, two = (load_file(next((tmp_path / name).glob("tasks/*/head.safetensors"))) for name in ("whole", "killed"))
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert not (tmp_path / "killed" / "training").exists()


def test_what_is_beyond_the_budget_lies_in_a_file(folder: TrainingFolder) -> None:
    pictures, options = store(11), {"image_size": 20, "batch_size": 3, "what": "features", "budget": 60}
    whole = run_pass(pictures, function, image_size=20, batch_size=3)
    for keeping in (None, Keeping(folder, 60.0)):
        found = stored_pass(pictures, function, keeping=keeping, **options)
        assert isinstance(found, FileRows)
        assert torch.equal(found[0:11], whole)
    folder.clear()
    folder.begin({})
    with pytest.raises(Interrupted):
        stored_pass(pictures, function, keeping=Keeping(folder, 60.0), check=StopAt(2), **options)
    assert torch.equal(stored_pass(pictures, function, keeping=Keeping(folder, 60.0), **options)[0:11], whole)
