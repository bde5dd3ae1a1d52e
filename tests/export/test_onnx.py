from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from sapwood.data.transforms import eval_view, resized
from sapwood.errors import SapwoodError
from sapwood.export import Options, Plain, export
from sapwood.export import onnx as exporter
from sapwood.export.onnx_dtype import eight_bits, half_weights, runner
from sapwood.export.onnx_resize import Preprocess
from sapwood.export.views import made_up
from sapwood.learner import Learner

from .conftest import Taught, odd_pictures

_FILES: dict[str, Path] = {}


@pytest.fixture
def file(taught: Taught, rounds: Callable[[str], tuple[Path, ...]], tmp_path: Path) -> Path:
    """The state of seq-lora as one file, checked on real decoded pictures; made once."""
    if "seq-lora" not in _FILES:
        made = export(taught("seq-lora"), tmp_path / "model.onnx", "onnx", data=str(rounds("classification")[2]))
        assert made.max_difference <= made.limit == 1e-4
        _FILES["seq-lora"] = made.path
    return _FILES["seq-lora"]


def by_hand(picture: Path, side: int = 28) -> np.ndarray:
    pixels = np.asarray(Image.open(picture).convert("RGB").resize((side, side), Image.Resampling.BICUBIC), np.float64)
    return ((pixels / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)).transpose(2, 0, 1).astype(np.float32)


def test_a_file_says_what_the_state_says_at_any_batch_and_size(
    file: Path, taught: Taught, rounds: Callable[[str], tuple[Path, ...]]
) -> None:
    session = onnxruntime.InferenceSession(str(file))
    facts = json.loads(session.get_modelmeta().custom_metadata_map["sapwood"])
    learner = Learner.open(taught("seq-lora"), device="cpu")
    assert facts["classes"] == ["ant", "bee", "cat", "dog"]
    assert facts["version"] == learner.state.version.id
    assert facts["preprocessing"]["size"] == [28, 28]
    assert not facts["preprocessing"]["inside"]
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    # Small enough that predicting does not reduce them before it takes the view.
    pictures = [picture for folder in rounds("classification")[:2] for picture in sorted(folder.rglob("*.png"))[::2]]
    said = learner.predict(pictures, top=4)
    batch = np.stack([by_hand(picture) for picture in pictures])
    for count in (1, 3, len(pictures)):
        (logits,) = session.run(["logits"], {"pixel_values": batch[:count]})
        scores = torch.from_numpy(logits).softmax(1)
        for row, answer in zip(scores, said, strict=False):
            best = int(row.argmax())
            assert facts["classes"][best] == answer.label
            assert float(row[best]) == pytest.approx(answer.score, abs=1e-4)
    plain = Plain.open(learner.state)
    other = F.interpolate(torch.from_numpy(batch), (42, 70))
    (logits,) = session.run(["logits"], {"pixel_values": other.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), plain(other), atol=1e-4, rtol=0)


def test_a_file_has_no_trace_of_adapter_or_machine(file: Path) -> None:
    content = file.read_bytes()
    for trace in (b"lora", b".base", b"adapter", b".py", b"site-packages", str(Path.home()).encode()):
        assert trace not in content, trace
    card = file.with_suffix(".md").read_text()
    assert "onnxruntime" in card


def test_a_file_that_answers_differently_is_refused(
    file: Path, plain: Callable[..., Plain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(graph: torch.nn.Module, *, any_size: bool) -> onnx.ModelProto:
        model = onnx.load(file)
        weights = next(tensor for tensor in model.graph.initializer if tuple(tensor.dims) == (4, 32))
        value = onnx.numpy_helper.to_array(weights)
        weights.CopyFrom(onnx.numpy_helper.from_array(value * np.float32(1.1), weights.name))
        return model

    monkeypatch.setattr(exporter, "trace", spoiled)
    options = Options((28, 28), made_up((28, 28), 4), "made-up pictures")
    with pytest.raises(SapwoodError, match=r"ONNX Runtime answers differently: by up to \S+ on made-up pictures"):
        exporter.write(plain("seq-lora"), tmp_path, options)


def test_the_card_s_lines_run(
    file: Path,
    taught: Taught,
    rounds: Callable[[str], tuple[Path, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(file, tmp_path / "copy.onnx")
    found = re.search(r"```python\n(.*?)```", file.with_suffix(".md").read_text(), re.DOTALL)
    assert found is not None
    code = compile(found[1].replace("model.onnx", "copy.onnx"), "card", "exec")
    learner = Learner.open(taught("seq-lora"), device="cpu")
    for picture in odd_pictures(min(rounds("classification")[0].rglob("*.png")), tmp_path):
        shutil.copy(picture, tmp_path / "picture.jpg")
        exec(code, {})
        name, score = capsys.readouterr().out.split()
        answer = learner.predict(picture)[0]
        assert name == answer.label, picture.name
        assert float(score) == pytest.approx(answer.score, abs=1e-4), picture.name


@pytest.mark.parametrize("size", [(28, 28), (33, 50), (52, 40), (20, 27), (120, 77)])
@pytest.mark.parametrize("square", [True, False])
def test_the_graph_resizes_as_pillow_does(size: tuple[int, int], square: bool) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    pillow = eval_view(picture, 28) if square else resized(picture, (28, 28))
    ours = Preprocess((28, 28), square, (0.5,) * 3, (0.5,) * 3).views(torch.from_numpy(picture)[None])[0]
    away = np.abs(ours.permute(1, 2, 0).numpy() - pillow)
    assert away.max() <= 1
    assert (away > 0).mean() < 0.005


def test_half_weights_are_rounded_once_and_large_ones_stay(file: Path, tmp_path: Path) -> None:
    model = onnx.load(file)
    big = next(tensor for tensor in model.graph.initializer if np.prod(tensor.dims) >= 1024)
    value = onnx.numpy_helper.to_array(big).copy()
    value.flat[0] = 1e6  # beyond half precision
    big.CopyFrom(onnx.numpy_helper.from_array(value, big.name))
    half_weights(model)
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    assert held[big.name].data_type == onnx.TensorProto.FLOAT
    assert any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in held.values())
    onnx.save(model, tmp_path / "half.onnx")
    assert (tmp_path / "half.onnx").stat().st_size < 0.8 * file.stat().st_size


def test_eight_bits_are_smaller_and_near(file: Path, tmp_path: Path) -> None:
    eight_bits(file, tmp_path / "int8.onnx", convolutions=False)
    assert (tmp_path / "int8.onnx").stat().st_size < 0.8 * file.stat().st_size
    pixels = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    before, after = (runner(path)(pixels).softmax(1) for path in (file, tmp_path / "int8.onnx"))
    assert 0 < float((before - after).abs().max()) < 0.1


def test_masks_come_out_at_the_size_of_the_picture_that_went_in(
    taught: Taught, rounds: Callable[[str], tuple[Path, ...]], tmp_path: Path
) -> None:
    state, folder = taught("clora+mib", "segmentation"), rounds("segmentation")[2]
    made = export(state, tmp_path / "out", "onnx", preprocessing=True, dtype="fp16", data=str(folder))
    assert made.facts["max_difference_fp32"] <= 1e-4
    assert made.facts["accuracy_fp32"] == pytest.approx(made.facts["accuracy_fp16"], abs=0.02)
    assert made.facts["resize_levels"] <= 1
    run = runner(tmp_path / "out" / "model.onnx")
    learner = Learner.open(state, device="cpu")
    for answer in learner.predict(folder / "images"):
        pixels = torch.from_numpy(np.asarray(Image.open(answer.path).convert("RGB")).copy())
        mask = run(pixels[None])[0].argmax(0).numpy()
        assert mask.shape == pixels.shape[:2] == (40, 60)
        assert (mask == answer.mask).mean() > 0.97  # weights in half precision, at the edges


def test_a_choice_for_each_picture_goes_into_the_graph(
    plain: Callable[..., Plain], rounds: Callable[[str], tuple[Path, ...]], tmp_path: Path
) -> None:
    opened = plain("color")
    pictures = [picture for folder in rounds("classification")[:2] for picture in sorted(folder.rglob("*.png"))[::3]]
    views = torch.stack([torch.from_numpy(eval_view(np.asarray(Image.open(each)), 28).copy()) for each in pictures])
    options = Options((28, 28), views, "pictures of both rounds")
    with torch.no_grad():
        ruled_out = opened(options.pixel_values(opened)) == -torch.inf
    assert len(torch.unique(ruled_out, dim=0)) == 2  # both experts are chosen
    check = exporter.write(opened, tmp_path, options, any_size=False)
    assert check.max_difference <= check.limit
    assert any("28 x 28" in note for note in check.notes)
    assert onnxruntime.InferenceSession(str(tmp_path / "model.onnx")).get_inputs()[0].shape == ["batch", 3, 28, 28]
