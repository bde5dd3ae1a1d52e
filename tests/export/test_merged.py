"""Folders of transformers: families of backbones, heads that no stock classifier holds, positions, processors."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

from sapwood.backbones import create_backbone
from sapwood.data.transforms import eval_view
from sapwood.errors import ConfigError
from sapwood.export import Plain, export
from sapwood.export.compare import difference
from sapwood.export.head_file import reading_lines
from sapwood.learner import Learner

from .conftest import odd_pictures

Taught = Callable[..., Path]
MakePlain = Callable[..., Plain]


def card_function(folder: Path) -> Callable[..., torch.Tensor]:
    """``logits`` on a prepared model, as the card's lines define both."""
    code = (folder / "README.md").read_text().split("```python\n")[1].split("\n\n\nfolder = ")[0]
    scope: dict[str, Any] = {}
    exec(code, scope)
    return lambda model, *rest: scope["logits"](scope["prepare"](model), *rest)


def scores(state: Path, folder: Path) -> dict[str, dict[str, float]]:
    """What sapwood itself says of files."""
    found = Learner.open(state, device="cpu").predict(folder, top=4)
    return {answer.path: dict(answer.top) for answer in found}


@pytest.mark.parametrize("family", ["dinov2-reg", "vit", "deit"])
def test_a_stock_classifier_scores_files_as_predict_does(
    family: str, taught: Taught, rounds: Callable[[str], tuple[Path, ...]], tmp_path: Path
) -> None:
    # A table of positions made for 32 px (28): it has to be interpolated, by ViT's kin in the file.
    state = taught("seq-lora", backbone=f"random:{family}-tiny", size=56 if family == "dinov2-reg" else 48)
    export(state, tmp_path / "out")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    for path, expected in scores(state, rounds("classification")[2]).items():
        picture = Image.open(path).convert("RGB")
        with torch.no_grad():
            given = model(**processor(picture, return_tensors="pt")).logits.softmax(1)[0]
        named = {model.config.id2label[index]: score for index, score in enumerate(given.tolist())}
        assert named == pytest.approx(
            expected, abs=5e-4
        )  # of 60 px, resized once: only the last bit of pixels may differ


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("clip", "seq-lora"),
        ("siglip", "ncm"),
        ("vit", "layup"),
        ("clip", "layup"),
        ("siglip", "layup"),
        ("mit", "ncm"),
        ("sam", "seq-lora"),  # q, k and v in one projection
        ("mit", "clora+mib"),
        ("vit", "clora+mib"),
    ],
)
def test_other_families_leave_as_encoder_and_head(family: str, method: str, taught: Taught, tmp_path: Path) -> None:
    kind = "segmentation" if "+" in method else "classification"
    made = export(taught(method, kind, backbone=f"random:{family}-tiny", size=64), tmp_path / "out")
    assert made.max_difference <= 1e-5
    assert made.facts["opened_by"] == "AutoModel"
    assert (tmp_path / "out" / "head.safetensors").is_file()


@pytest.mark.parametrize("family", ["dinov2", "vit", "clip", "siglip"])
def test_blocks_are_read_behind_the_norm_once(family: str, taught: Taught, tmp_path: Path) -> None:
    """Random weights come with norms that could be applied twice unseen."""
    model: Any = create_backbone(f"random:{family}-tiny").get_submodule("model")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in (module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)):
            norm.weight.mul_(1 + torch.rand(norm.weight.shape, generator=generator))
            norm.bias.add_(torch.rand(norm.bias.shape, generator=generator))
    model.save_pretrained(tmp_path / "backbone")
    state = taught("layup", backbone=str(tmp_path / "backbone"), size=28 if family == "dinov2" else 64)
    made = export(state, tmp_path / "out", accept_licence=True)
    assert made.max_difference <= 1e-5


def test_the_check_would_see_another_answer() -> None:
    logits = torch.tensor([[1.0, -40.0]])
    assert difference(logits, logits) == 0
    assert difference(logits + torch.tensor([[0.0, 4e-3]]), logits) == pytest.approx(1e-4, rel=1e-2)
    assert difference(logits[:, :1], logits) == np.inf
    assert difference(logits * torch.nan, logits) == np.inf
    ruled_out = torch.tensor([[1.0, -torch.inf]])
    assert difference(ruled_out, ruled_out) == 0
    assert difference(logits, ruled_out) == np.inf


def test_a_stock_residual_network_is_prepared(taught: Taught, tmp_path: Path) -> None:
    made = export(taught("seq-lora", backbone="random:resnet-tiny", size=64), tmp_path / "out")
    assert made.max_difference <= 1e-5
    model = AutoModel.from_pretrained(made.path).eval()
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    head = load_file(tmp_path / "out" / "head.safetensors")
    with torch.no_grad():
        as_it_comes = model(pixels).last_hidden_state.mean((2, 3)) @ head["weight"].T + head["bias"]
    prepared = card_function(made.path)(model, head, pixels)
    assert (prepared - as_it_comes).abs().max() > 1e-3  # without the card's `prepare` it is another network


def test_what_no_stock_model_holds(plain: MakePlain) -> None:
    found: Any = plain("ncm")
    found.backbone.info = dataclasses.replace(found.backbone.info, family="timm")
    with pytest.raises(ConfigError, match=r"is no model of transformers .* take --to onnx"):
        reading_lines(found)


@pytest.mark.parametrize("method", ["seq-lora", "ranpac", "clora+mib"])
def test_the_lines_of_the_card_run_without_sapwood(
    method: str, taught: Taught, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = method == "clora+mib"
    state = taught(method, "segmentation" if masks else "classification")
    export(state, tmp_path / "out")
    code = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)
    assert len(code) == 1
    assert "sapwood" not in code[0]
    pixels = np.random.default_rng(0).integers(0, 256, (35, 34, 3), np.uint8)  # the square begins between two pixels
    Image.fromarray(pixels).save(tmp_path / "upright.png")
    pictures = odd_pictures(tmp_path / "upright.png", tmp_path)
    answers = Learner.open(state, device="cpu").predict(pictures)
    monkeypatch.chdir(tmp_path / "out")
    monkeypatch.setitem(sys.modules, "sapwood", None)  # importing it fails
    for picture, answer in zip(pictures, answers, strict=True):
        shutil.copy(picture, "picture.jpg")
        exec(code[0], {})
        said = capsys.readouterr().out.strip()
        if masks:
            assert set(re.findall(r"'(\w+)'", said)) <= {"background", "ant", "bee", "cat", "dog"}
        else:
            name, score = said.split()
            assert name == answer.label, picture.name
            assert float(score) == pytest.approx(answer.score, abs=1e-4), picture.name


def test_the_processor_makes_our_view(taught: Taught, tmp_path: Path) -> None:
    made = export(taught("ncm"), tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert settings["size"] == {"shortest_edge": 28}
    picture = np.random.default_rng(1).integers(0, 256, (28, 28, 3), np.uint8)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    given = processor(Image.fromarray(picture), return_tensors="pt")["pixel_values"]
    mean, std = made.facts["preprocessing"]["mean"], made.facts["preprocessing"]["std"]
    ours = (eval_view(picture, 28) / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(given[0].numpy(), ours.transpose(2, 0, 1), atol=1e-5)
    assert "AutoImageProcessor's pixels differ" in made.notes[0]


def test_masks_of_one_round(plain: MakePlain, taught: Taught, tmp_path: Path) -> None:
    made = export(taught("color", "segmentation"), tmp_path / "out", task=2)
    assert made.facts["classes"] == ["background", "cat", "dog"]
    assert made.max_difference <= 1e-5
    one: Any = plain("color", "segmentation", task=2)
    assert one(torch.zeros(1, 3, 28, 42)).shape[1] == 3
