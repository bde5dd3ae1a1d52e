"""Smaller weights: what they cost is measured on the files themselves, and told as it is."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from sapwood.export import Options, Plain, Shipped, export
from sapwood.export.onnx_dtype import accuracy, eight_bit_words
from sapwood.export.options import Labelled

from .conftest import Taught

SIDE = 64
CONVOLUTIONS = {"backbone": "random:resnet-tiny", "size": SIDE}


def by_hand(picture: Path) -> np.ndarray:
    pixels = np.asarray(Image.open(picture).convert("RGB"), np.float64)
    return ((pixels / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)).transpose(2, 0, 1).astype(np.float32)


@pytest.fixture
def doubtful(plain: Callable[..., Plain], rounds: Callable[[str], tuple[Path, ...]], tmp_path: Path) -> Path:
    """Pictures between two classes, in the folder of the one that the network just prefers."""
    network = plain("ncm", **CONVOLUTIONS)
    ends = [
        np.asarray(Image.open(min((rounds("classification")[0] / name).iterdir())).resize((SIDE, SIDE)), np.float64)
        for name in ("ant", "bee")
    ]
    shares = np.linspace(0, 1, 300)
    blends = np.stack([((1 - share) * ends[0] + share * ends[1]).round().astype(np.uint8) for share in shares])
    views = Options((SIDE, SIDE), torch.from_numpy(blends), "blends").pixel_values(network)
    with torch.no_grad():
        logits = network(views)
    best = logits.topk(2).values
    lead = best[:, 0] - best[:, 1]
    near = [index for index in lead.argsort().tolist() if lead[index] > 1e-4][:12]
    for index in near:
        folder = tmp_path / "doubtful" / network.classes[int(logits[index].argmax())]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(blends[index]).save(folder / f"{index:03d}.png")
    return tmp_path / "doubtful"


def test_a_residual_network_in_eight_bits(
    plain: Callable[..., Plain], taught: Taught, doubtful: Path, tmp_path: Path
) -> None:
    """Its accuracy, its scores and its distance from the network are those of the file, run by ONNX Runtime alone."""
    made: Shipped = export(taught("ncm", **CONVOLUTIONS), tmp_path / "out", "onnx", dtype="int8", data=str(doubtful))
    model = onnx.load(made.path / "model.onnx")
    kinds = Counter(node.op_type for node in model.graph.node)
    assert (kinds["Conv"], kinds["ConvInteger"] > 10) == (0, True)
    assert made.notes[0].startswith(f"int8: the weights of {kinds['MatMulInteger']} matri")
    assert made.notes[0].endswith(f"and {kinds['ConvInteger']} convolutions")
    assert made.notes[0] in (made.path / "README.md").read_text()

    session = onnxruntime.InferenceSession(str(made.path / "model.onnx"))
    classes = json.loads(session.get_modelmeta().custom_metadata_map["sapwood"])["classes"]
    pictures = sorted(doubtful.rglob("*.png"))
    batch = np.stack([by_hand(picture) for picture in pictures])
    (logits,) = session.run(["logits"], {"pixel_values": batch})  # all at once, as they are measured
    right = np.array(
        [classes[row.argmax()] == picture.parent.name for row, picture in zip(logits, pictures, strict=True)]
    )
    assert 0 < right.mean() < 1  # these pictures do tell the files apart
    assert made.facts["accuracy_int8"] == pytest.approx(right.mean())
    assert made.facts["accuracy_fp32"] == 1.0
    assert f"fp32 100.0 %, int8 {100 * right.mean():.1f} %" in made.notes[-1]

    (logits,) = session.run(["logits"], {"pixel_values": batch[:8]})  # so many are compared
    with torch.no_grad():
        expected = plain("ncm", **CONVOLUTIONS)(torch.from_numpy(batch[:8]))
    apart = (torch.from_numpy(logits) - expected).abs().max() / expected.abs().max().clamp(min=1.0)
    assert made.max_difference == pytest.approx(float(apart), rel=1e-3)
    moved = (torch.from_numpy(logits).softmax(1) - expected.softmax(1)).abs().max()
    assert made.facts["max_difference_scores"] == pytest.approx(float(moved), abs=1e-5)
    assert moved > 1e-4


def test_what_stays_as_it_was_is_said() -> None:
    def words(**kinds: int) -> str:
        nodes = [onnx.helper.make_node(kind, ["a"], ["b"]) for kind, count in kinds.items() for _ in range(count)]
        return eight_bit_words(onnx.helper.make_model(onnx.helper.make_graph(nodes, "graph", [], [])))

    assert words(MatMulInteger=31, MatMul=10, Conv=13) == (
        "int8: the weights of 31 matrices; 13 convolutions in float32 as before"
    )
    assert words(MatMulInteger=1, ConvInteger=23) == "int8: the weights of 1 matrix and 23 convolutions"


def test_accuracy_leaves_out_what_is_not_labelled() -> None:
    views = torch.zeros(20, 2, 2, 3, dtype=torch.uint8)  # more than go through at once
    targets = torch.zeros(20, 2, 2, dtype=torch.int64)
    targets[:, 0, 0], targets[:, 1, 0] = 255, 1
    channels = torch.tensor([1.0, 0.0])[None, :, None, None].expand(-1, -1, 2, 2)
    found = accuracy(
        lambda given: channels.expand(len(given), -1, -1, -1), Labelled(views, targets, "made up"), torch.Tensor.float
    )
    assert found == pytest.approx(2 / 3)
    whole = Labelled(views, torch.arange(20) % 2, "made up")
    assert accuracy(lambda given: torch.eye(2)[given[:, 0, 0, 0].long()], whole, lambda given: given) == 0.5
