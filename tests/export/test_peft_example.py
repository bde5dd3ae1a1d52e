"""``examples/peft_load.py`` names pictures as sapwood does, in a process that cannot import sapwood."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sapwood.backbones import create_backbone
from sapwood.export import export
from sapwood.learner import Learner

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "peft_load.py"


@pytest.mark.parametrize(
    ("method", "backbone"),
    [
        ("seq-lora", "random:dinov2-tiny"),
        ("lora+ranpac", "random:dinov2-tiny"),
        ("c-lora", "random:clip-tiny"),
        ("lora+layup", "random:dinov2-tiny"),
        ("lora+layup", "random:clip-tiny"),
    ],
)
def test_classes_and_scores_are_those_of_predict(
    method: str,
    backbone: str,
    taught: Callable[..., Path],
    picture_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = taught(method, "classification", backbone=backbone, size=28 if "dinov2" in backbone else 64)
    # Not much larger than the view: of others sapwood decodes a smaller version first.
    pictures = picture_folder(
        ["ant", "bee", "cat", "dog"], 2, name="new", seed=7, size=32 if "dinov2" in backbone else 72
    )
    answers = Learner.open(state, device="cpu").predict(pictures)
    export(state, tmp_path / "out", "peft")
    create_backbone(backbone).get_submodule("model").save_pretrained(tmp_path / "base")  # type: ignore[operator]
    monkeypatch.setattr(sys, "argv", ["peft_load.py", str(tmp_path / "out"), *(answer.path for answer in answers)])
    with monkeypatch.context() as alone:
        for name in [name for name in sys.modules if name.split(".")[0] == "sapwood"]:
            alone.setitem(sys.modules, name, None)  # importing it fails
        with pytest.raises(SystemExit, match="names no backbone on the hub; give the folder"):
            runpy.run_path(str(EXAMPLE), run_name="__main__")
        sys.argv += ["--base", str(tmp_path / "base")]
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(answers) == 8
    for line, answer in zip(said, answers, strict=True):
        name, score = line.removeprefix(f"{answer.path}: ").rsplit(" ", 1)
        assert name == answer.label
        assert float(score) == pytest.approx(answer.score, abs=6e-5)
