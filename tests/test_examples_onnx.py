from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sapwood.export import export
from sapwood.learner import Learner

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "onnx_predict.py"
WITHOUT = """\
import runpy, sys
for name in ("torch", "transformers", "sapwood"):
    sys.modules[name] = None  # importing it fails
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_pictures_are_named_without_sapwood_and_torch(picture_folder: Callable[..., Path], tmp_path: Path) -> None:
    exact = {"training": {"precision": "fp32"}}
    state, backbone = tmp_path / "state", "random:dinov2-tiny"
    learner = Learner.create(state, method="ncm", backbone=backbone, image_size=28, settings=exact)
    learner.learn(picture_folder(["ant", "bee"], 3))
    pictures = sorted(picture_folder(["ant", "bee"], 2, name="other", seed=1, size=35).rglob("*.png"))
    export(state, tmp_path / "model.onnx", "onnx", preprocessing=True)
    command = [sys.executable, "-c", WITHOUT, EXAMPLE, tmp_path / "model.onnx", *pictures, "--top", "2"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(pictures)
    for line, answer in zip(lines, learner.predict(pictures, top=2), strict=True):
        said = line.removeprefix(f"{answer.path}: ").split(", ")
        assert said[0].split()[0] == answer.label
        assert float(said[0].split()[1]) == pytest.approx(answer.score, abs=1e-3)
        assert len(said) == 2
