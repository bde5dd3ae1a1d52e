"""States that earlier releases wrote: each opens, and predicts what it predicted when it was made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sapwood.learner import Learner
from sapwood.state import FORMAT, State

from .helpers import tree

# A folder a format, never changed: states of two rounds on random:dinov2-tiny, what they are asked (the pictures below
# one another in one file), and what they answered.
FIXTURES = Path(__file__).parent / "fixtures"
FORMATS = range(1, FORMAT + 1)
SIDE, WIDTH = 28, 42


def split(path: Path) -> list[np.ndarray]:
    pixels = np.asarray(Image.open(path))
    return [pixels[top : top + SIDE] for top in range(0, len(pixels), SIDE)]


@pytest.mark.parametrize("number", FORMATS)
@pytest.mark.parametrize("name", ["ncm", "seq-lora"])
def test_classes_are_those_of_then(number: int, name: str) -> None:
    folder = FIXTURES / f"format{number}"
    before = tree(folder / name)
    learner = Learner.open(folder / name, device="cpu")
    answers = learner.predict(split(folder / "pictures.png"))
    expected = json.loads((folder / "expected.json").read_text())[name]
    assert len(answers) == len(expected) == 3
    assert [answer.label for answer in answers] == ["ant", "bee", "cow"]
    for answer, scores in zip(answers, expected, strict=True):
        assert dict(answer.top) == pytest.approx(scores, abs=1e-5)
    assert tree(folder / name) == before


@pytest.mark.parametrize("number", FORMATS)
def test_masks_are_those_of_then(number: int) -> None:
    folder = FIXTURES / f"format{number}"
    answers = Learner.open(folder / "masks", device="cpu").predict(split(folder / "views.png"))
    for answer, expected in zip(answers, split(folder / "masks.png"), strict=True):
        assert expected.shape == (SIDE, WIDTH)
        assert len(np.unique(expected)) > 1
        # Whatever computes in another order may decide a pixel on the border of two classes otherwise.
        assert np.mean(answer.mask == expected) > 0.995


@pytest.mark.parametrize("number", FORMATS)
@pytest.mark.parametrize("name", ["ncm", "seq-lora", "masks"])
def test_all_versions_are_there_and_can_be_gone_back_to(number: int, name: str, tmp_path: Path) -> None:
    state = State.open(shutil.copytree(FIXTURES / f"format{number}" / name, tmp_path / "model"))
    versions = state.versions()
    assert [version.record["note"] for version in versions] == ["created", "learn first", "learn second"]
    assert all(version.record["format"] == number for version in versions)
    for file in state.version.record["files"]:
        assert state.tensors(file) if file.endswith(".safetensors") else state.text(file) is not None
    assert state.undo().record["classes"] == versions[1].record["classes"]
    assert state.prune(1) == [version.id for version in versions]
    assert State.open(state.path).version.record["format"] == FORMAT
    assert Learner.open(state.path, device="cpu").network.head.classes == len(versions[1].record["classes"])


def test_a_state_of_then_learns_on(tmp_path: Path) -> None:
    state = shutil.copytree(FIXTURES / "format1" / "ncm", tmp_path / "model")
    pictures = split(FIXTURES / "format1" / "pictures.png")
    learner = Learner.open(state, device="cpu").learn([(pictures[0], "dog")] * 2, task="third")
    assert learner.classes_ == ("ant", "bee", "cow", "dog")
    assert learner.predict([pictures[1]])[0].label == "bee"
