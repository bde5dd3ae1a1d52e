"""What a folder that ``sapwood export --to merged`` wrote says, by stock classes and by the lines of its own card."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, AutoModelForImageClassification

from sapwood.backbones import create_backbone
from sapwood.depths import reading
from sapwood.learner import Learner


def pixel_values(folder: Path, size: Any, most: int = 4) -> Tensor:
    """Files decoded and normalised by hand: ImageNet's mean and spread, the whole picture stretched to the view."""
    height, width = (size, size) if isinstance(size, int) else size
    views = []
    for file in sorted(file for file in folder.rglob("*.png") if "masks" not in file.parts)[-most:]:
        picture = Image.open(file).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        views.append(np.asarray(picture, np.float64) / 255)
    values = (np.stack(views) - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    return torch.from_numpy(values).float().permute(0, 3, 1, 2).contiguous()


def unmerged(learner: Learner, pixels: Tensor) -> Tensor:
    """Logits over the temperature, with the adapter adding its part in the forward."""
    network: Any = learner.network
    with torch.no_grad(), reading(network.backbone, network.reads) as pooled:
        network.slot.context = network.adapter.plan(pixels, network)
        tokens = pooled(network.backbone(pixels))
        logits: Tensor = network.adapter.calibrate(network.head(tokens), network.slot.context)
    return logits / network.head.temperature


def card_function(folder: Path) -> Callable[[Any, dict[str, Tensor], Tensor], Tensor]:
    """``logits`` as the card's first lines of Python define it."""
    code = (folder / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("\n\n\nfolder = ")[0]
    scope: dict[str, Any] = {}
    exec(code, scope)
    function: Callable[[Any, dict[str, Tensor], Tensor], Tensor] = scope["logits"]
    return function


def opened_answers(folder: Path, pixels: Tensor) -> Tensor:
    """Logits by stock transformers: the classifier where there is one, else encoder, head and the card."""
    if not (folder / "head.safetensors").exists():
        model = AutoModelForImageClassification.from_pretrained(folder).eval()
        with torch.no_grad():
            logits: Tensor = model(pixel_values=pixels).logits
        return logits
    model = AutoModel.from_pretrained(folder).eval()
    return card_function(folder)(model, load_file(folder / "head.safetensors"), pixels)


def shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor in a file."""
    with safe_open(file, "pt") as held:
        return {name: tuple(held.get_slice(name).get_shape()) for name in held.keys()}  # noqa: SIM118


@functools.cache
def stock_shapes(backbone: str) -> dict[str, tuple[int, ...]]:
    """Of the encoder as its own library saves it."""
    with tempfile.TemporaryDirectory() as folder:
        model: Any = create_backbone(backbone).get_submodule("model")
        model.save_pretrained(folder)
        return shapes(Path(folder) / "model.safetensors")


def check_nothing_left(folder: Path, backbone: str, prefix: str, classes: tuple[str, ...]) -> None:
    """Only what a stock model has: its tensors, a classifier, the labels."""
    held = shapes(folder / "model.safetensors")
    classifier = {name for name in held if name.startswith("classifier.")}
    assert classifier in (set(), {"classifier.weight", "classifier.bias"})
    rest = {name.removeprefix(prefix): shape for name, shape in held.items() if name not in classifier}
    assert rest == stock_shapes(backbone)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert [config["id2label"][str(channel)] for channel in range(len(classes))] == list(classes)
    assert config["label2id"] == {name: channel for channel, name in enumerate(classes)}
    text = json.dumps({name: value for name, value in config.items() if name not in ("id2label", "label2id")})
    assert not any(word in text.lower() for word in ("lora", "adapter", '"rank', "alpha"))
