"""Two processes that learn together from kept hidden states: each computes a part, both read all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from meeting import Meeting
from safetensors.torch import load_file
from torch import Tensor

from sapwood.learner import Learner
from sapwood.prefixes import PrefixFeed

SETTINGS = {
    "adapter": {"blocks": "-1"},
    "training": {
        "epochs": 2,
        "batch_size": 6,
        "precision": "fp32",
        "lr": 1e-3,
        "validation": 0.25,
        "cache_prefix": 2,
        "balance": "none",
    },
}


def learned(meeting: Meeting, processes: int, folder: Path, pictures: Path) -> list[int]:
    """A state learned by so many processes, at ``folder/state``; how many views each of them has computed."""
    folder.mkdir()

    def work(rank: int) -> int:
        os.environ["SAPWOOD_CACHE"] = str(folder / "cache")
        hidden, computed = PrefixFeed._hidden, 0

        def count(self: PrefixFeed, images: Tensor) -> Tensor:
            nonlocal computed
            computed += len(images)
            return hidden(self, images)

        PrefixFeed._hidden = count  # type: ignore[method-assign]
        options: dict[str, Any] = {"method": "lora+lwf", "image_size": 28, "settings": SETTINGS}
        Learner.create(folder / "state", backbone="random:dinov2-tiny", **options).learn(pictures)
        return computed

    return meeting.values(processes, work)


def test_each_view_is_computed_once_and_the_round_is_the_same(
    tmp_path: Path, picture_folder: Callable[..., Path], meeting: Callable[[], Meeting]
) -> None:
    pictures = picture_folder(["ant", "bee"], 28)  # 42 to train on, 14 held out
    assert learned(meeting(), 1, tmp_path / "one", pictures) == [2 * 42 + 14]
    assert learned(meeting(), 2, tmp_path / "two", pictures) == [2 * 32 + 14, 2 * 10]
    kept = [{path.name for path in (tmp_path / name / "cache" / "hidden").rglob("*")} for name in ("one", "two")]
    assert kept[0] == kept[1]
    one, two = (tmp_path / name / "state" / "tasks" / "0001-task-1" for name in ("one", "two"))
    losses = [[json.loads(row)["loss"] for row in (each / "log.jsonl").read_text().splitlines()] for each in (one, two)]
    assert len(losses[0]) == 2
    assert losses[1] == pytest.approx(losses[0], rel=2e-5)
    for name in ("adapter", "head"):
        whole, shared = (load_file(each / f"{name}.safetensors") for each in (one, two))
        assert whole.keys() == shared.keys()
        for key, tensor in whole.items():
            torch.testing.assert_close(shared[key], tensor, rtol=1e-3, atol=1e-4)
