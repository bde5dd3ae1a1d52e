"""Two processes that share every batch learn what one learns."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from meeting import Meeting

from sapwood.learner import Learner

from .together import learn_all

TRAINING = {"epochs": 1, "batch_size": 4, "precision": "fp32", "lr": 1e-3, "balance": "none", "validation": 0.2}
PICTURES = ("lora+ewc", "inflora", "dual-lora", "seq-lora+ridge")
# The other objectives for masks are made of the same parts as these.
MASKS = ("clora", "clora+mib", "clora+plop", "clora+rcil", "clora+sats", "clora+ssul", "clora+dkd")
LONGER, TWICE = "clora+sats", {"epochs": 2, "validation": 0.34}
"""Between two epochs four held-out pictures are measured: the second batch has one, so the second process has none."""
PIECES = ("inflora", "lora+ewc", LONGER)
"""Learned again with the backbone in pieces: folded weights, gradients outside steps, hooks in blocks, a teacher."""
NOISY = ("clora+dkd",)
"""Old rows start a round where the teacher stands: first gradients are rounding, which AdamW takes full steps on."""
IGNORING = ("clora", "clora+mib", "clora+plop", "clora+dkd", "clora+ssul")
"""Learned with masks in which some pictures have more labelled pixels than others."""


def jobs(
    folder: Path, pictures: list[Path], masks: list[Path], methods: tuple[str, ...] = PICTURES + MASKS
) -> list[dict[str, Any]]:
    """Rounds of 13 pictures, ten to train on: the last batch has two, one for each, or one, on loan to the second."""
    made: list[dict[str, Any]] = []
    for method in methods:
        drawn = method in MASKS
        training = TRAINING | ({"batch_size": 3} if drawn else {}) | (TWICE if method == LONGER else {})
        made.append(
            {
                "state": str(folder / method),
                "method": method,
                "kind": "segmentation" if drawn else "classification",
                "backbone": "random:dinov2-tiny",
                "size": (28, 42) if drawn else 28,
                "rounds": list(map(str, masks if drawn else pictures)),
                "settings": {"training": training},
                "unlabelled": "ignore" if method in IGNORING else "background",
            }
        )
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("together")


@pytest.fixture
def learned(
    folders: Path,
    meeting: Callable[[], Meeting],
    picture_folder: Callable[..., Path],
    mask_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """Folders ``1``, ``2`` and ``pieces``: what one process, two, and two that share the backbone made of pictures."""
    if not (folders / "2").is_dir():
        pictures = [picture_folder(names, 6, name="-".join(names)) for names in (["ant", "bee"], ["cat", "dog"])]
        masks = [
            mask_folder(["ant", "bee"], 12, name="first-masks", size=(40, 60)),
            mask_folder(["cat", "dog"], 12, also=["bee"], name="second-masks", size=(40, 60)),
        ]
        for name, processes, methods in (("1", 1, PICTURES + MASKS), ("2", 2, PICTURES + MASKS), ("pieces", 2, PIECES)):
            (folders / name).mkdir()
            plan = jobs(folders / name, pictures, masks, methods)
            monkeypatch.setenv("ACCELERATE_USE_FSDP", str(name == "pieces").lower())
            held = meeting().values(processes, partial(learn_all, plan))
            (folders / name / "held.json").write_text(json.dumps(held))
    return folders


def losses(state: Path) -> list[float]:
    """Of all epochs of all rounds."""
    logs = sorted(state.glob("tasks/*/log.jsonl"))
    return [json.loads(line)["loss"] for log in logs for line in log.read_text().splitlines()]


@pytest.mark.parametrize("name", PICTURES + MASKS)
def test_two_learn_what_one_learns(learned: Path, name: str) -> None:
    one, two = learned / "1" / name, learned / "2" / name
    assert len(losses(one)) == (4 if name == LONGER else 2)
    assert losses(two) == pytest.approx(losses(one), rel=2e-5)
    first, second = Learner.open(one, device="cpu"), Learner.open(two, device="cpu")
    assert [task["trainable_parameters"] for task in second.record["tasks"]] == [
        task["trainable_parameters"] for task in first.record["tasks"]
    ]
    assert second.accuracy_[-1][-1] == pytest.approx(first.accuracy_[-1][-1], abs=0.02)
    counted = [[task["train_gmacs"] for task in learner.record["tasks"]] for learner in (first, second)]
    for alone, shared in zip(*counted, strict=True):  # pictures on loan, and passes that every process makes, count too
        assert alone < 1.02 * shared < 2.1 * alone
    size = (28, 42) if name not in PICTURES else (28, 28)
    images = torch.randint(0, 256, (3, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = first.network.predict(images), second.network.predict(images)
    near = 5e-3 if name not in NOISY else 5e-2
    assert torch.allclose(ours, theirs, atol=near, rtol=1e-2), float((ours - theirs).abs().max())


@pytest.mark.parametrize("name", PIECES)
def test_a_backbone_in_pieces_learns_bit_for_bit_the_same(learned: Path, name: str) -> None:
    files = sorted((learned / "2" / name / "tasks").rglob("*.safetensors"))
    assert len(files) >= 4
    for file in files:
        assert (learned / "pieces" / file.relative_to(learned / "2")).read_bytes() == file.read_bytes(), file


def test_each_process_holds_its_piece(learned: Path) -> None:
    shares = json.loads((learned / "pieces" / "held.json").read_text())
    assert [len(each) for each in shares] == [len(PIECES)] * 2
    assert all(0.45 < share < 0.55 for each in shares for share in each)
    assert sum(map(sum, shares)) == pytest.approx(len(PIECES))
    assert json.loads((learned / "2" / "held.json").read_text()) == [[1.0] * len(PICTURES + MASKS)] * 2
