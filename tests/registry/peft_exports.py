"""What a folder that ``sapwood export --to peft`` wrote says, by stock PEFT on a stock backbone."""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel

from sapwood.backbones import create_backbone
from sapwood.learner import Learner


def stock(backbone: str) -> Any:
    """The backbone as it came, through a folder of its library, as nobody has seen sapwood."""
    return AutoModel.from_pretrained(_stock_folder(backbone).name).eval()


@functools.cache
def _stock_folder(backbone: str) -> tempfile.TemporaryDirectory[str]:
    """Lasts as long as the process."""
    folder = tempfile.TemporaryDirectory()
    create_backbone(backbone).get_submodule("model").save_pretrained(folder.name)
    return folder


def adapted(model: Any, folder: Path) -> Any:
    """A stock model with the exported adapter on it, loaded by PEFT, which may not miss a tensor."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected).*")
        return PeftModel.from_pretrained(model, folder).eval()


def card_scores(model: Any, folder: Path, pixels: Tensor) -> Tensor:
    """Scores as the function of the card computes them."""
    code = (folder / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("\n\n\nbase = ")[0]
    scope: dict[str, Any] = {}
    exec(code, scope)
    function: Callable[[Any, dict[str, Tensor], Tensor], Tensor] = scope["logits"]
    return function(model, load_file(folder / "head.safetensors"), pixels).softmax(1)


def own_tokens(learner: Learner, pixels: Tensor) -> Tensor:
    """All tokens of a network that merges nothing: pooled, then patches [B, 1 + N, d]."""
    network = learner.network
    with torch.no_grad():
        network.slot.context = network.adapter.plan(pixels, network)
        tokens = network.backbone(pixels)
    return torch.cat([tokens.pooled[:, None], tokens.patches], 1)
