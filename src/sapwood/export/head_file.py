"""The head beside a model of transformers: its tensors, and the few lines of torch that apply them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sapwood.backbones.families import FAMILIES
from sapwood.errors import ConfigError
from sapwood.export.dense_file import dense_file
from sapwood.export.plain import Plain
from sapwood.heads.cosine import CosineHead
from sapwood.heads.dense import DenseHead
from sapwood.heads.linear import LinearHead
from sapwood.heads.prototype import PrototypeHead
from sapwood.heads.ridge import RidgeHead

HEAD = "head.safetensors"

_TOKENS = frozenset({"dinov2", "dinov2-reg", "vit", "deit", "clip", "siglip"})
_FLAG = frozenset({"vit", "deit", "clip", "siglip"})  # they read other sizes than that of their weights only if told
# What ``backbones.resnet`` does when it opens one, for a model of the library that has just been loaded.
_DILATE = (
    "",
    "",
    "def prepare(model):",
    '    """The last stage keeps the grid of the one before: its stride becomes a dilation (DeepLabV3)."""',
    "    strided = False",
    "    for block in model.encoder.stages[-1].layers:",
    "        for convolution in (layer.convolution for layer in block.layer):",
    "            if strided and convolution.kernel_size > (1, 1):",
    "                convolution.dilation = convolution.padding = (2, 2)",
    "            strided |= convolution.stride == (2, 2)",
    "            convolution.stride = (1, 1)",
    '        if hasattr(block.shortcut, "convolution"):',
    "            block.shortcut.convolution.stride = (1, 1)",
    "    return model",
)


@dataclass(frozen=True)
class HeadFile:
    """A head without sapwood.

    Attributes:
        tensors: what ``head.safetensors`` holds, float32; classes in the order of the labels.
        lines: statements from ``features`` [B, d] (of masks ``maps`` [B, d, h, w]) and the dictionary ``head`` to the
            returned logits, whose softmax is the score.
        form: what it is, in words.
    """

    tensors: dict[str, Tensor]
    lines: tuple[str, ...]
    form: str


def affine(plain: Plain) -> tuple[Tensor, Tensor] | None:
    """Weight [K, d] and bias [K] that give the logits of pooled features, temperature and all; None if none do."""
    head, rows = plain.head, _rows(plain)
    weight: Tensor
    bias: Tensor
    if type(head) is LinearHead:
        weight, bias = head.classifier.weight, head.classifier.get_parameter("bias")
    elif type(head) is RidgeHead and head.config.projection is None:
        weight, bias = head.solution.T, head.solution.new_zeros(head.solution.shape[1])
    else:
        return None
    return (weight[rows] / head.temperature).contiguous(), bias[rows] / head.temperature


def head_file(plain: Plain) -> HeadFile:
    """The head as tensors and statements.

    Raises:
        ConfigError: a head of another package, of which nothing is known.
    """
    head, rows = plain.head, _rows(plain)
    if isinstance(head, DenseHead):
        return HeadFile(*dense_file(head, plain.channels))
    lines: tuple[str, ...]
    temperature = torch.tensor([head.temperature])
    if (found := affine(plain)) is not None:
        tensors = {"weight": found[0], "bias": found[1]}
        return HeadFile(tensors, ('return F.linear(features, head["weight"], head["bias"])',), "affine")
    if type(head) is RidgeHead:
        tensors = {"projection": head.projection, "weight": head.solution[:, rows], "temperature": temperature}
        lines = (
            'expanded = torch.relu(features @ head["projection"])',
            'return expanded @ head["weight"] / head["temperature"]',
        )
        return HeadFile(tensors, lines, "ridge regression behind a random projection")
    cosines = 'cosines = F.linear(F.normalize(features, dim=1), F.normalize(head["weight"], dim=1))'
    if type(head) is CosineHead:
        tensors = {"weight": head.classifier.weight[rows], "scale": head.classifier.get_parameter("scale")}
        lines = (cosines, 'return head["scale"] * cosines / head["temperature"]')
        return HeadFile(tensors | {"temperature": temperature}, lines, "scaled cosine to a row a class")
    if type(head) is PrototypeHead:
        empty = (head.count[rows] == 0).to(torch.uint8)
        tensors = {"weight": head.centres[rows], "empty": empty, "temperature": temperature}
        lines = (
            cosines,
            'cosines = cosines.masked_fill(head["empty"].bool(), -1.0)  # classes without pictures',
            'return cosines / head["temperature"]',
        )
        return HeadFile(tensors, lines, "cosine to the mean of each class")
    name = plain.record["parts"]["head"]
    raise ConfigError(
        f"nothing is known of how to write down the head {name!r}; --to onnx holds what torch can translate"
    )


def write_head(plain: Plain, folder: Path) -> HeadFile:
    """Write ``head.safetensors`` into a folder."""
    from safetensors.torch import save_file

    found = head_file(plain)
    tensors = {name: value.detach().float().clone().contiguous() for name, value in found.tensors.items()}
    facts = {"form": found.form, "classes": json.dumps(list(plain.classes), ensure_ascii=False), "format": "pt"}
    save_file(tensors, folder / HEAD, facts)
    return found


def reading_lines(plain: Plain) -> tuple[str, ...]:
    """Statements from ``model``, a stock model of transformers, and ``pixel_values`` to what the head reads.

    Raises:
        ConfigError: no stock model gives it.
    """
    info = plain.backbone.info
    masks = plain.kind == "segmentation"
    if info.family in _TOKENS:
        return _token_lines(plain, masks)
    if info.family in ("sam", "resnet"):
        found = "maps = model(pixel_values=pixel_values).last_hidden_state"
        return (found,) if masks else (found, "features = maps.flatten(2).mean(dim=2)")
    if info.family == "mit":
        return (
            "levels = []",
            "for stage in model.stages:",
            "    levels.append(stage(levels[-1] if levels else pixel_values))",
            "size = levels[0].shape[-2:]",
            'maps = torch.cat([levels[0], *(F.interpolate(each, size, mode="bilinear") for each in levels[1:])], 1)',
            *(() if masks else ("features = maps.flatten(2).mean(dim=2)",)),
        )
    raise ConfigError(f"{info.name} is no model of transformers that could be opened by its name; take --to onnx")


def _token_lines(plain: Plain, masks: bool) -> tuple[str, ...]:
    info = plain.backbone.info
    flag = ", interpolate_pos_encoding=True" if info.family in _FLAG else ""
    if plain.network.reads:
        return _block_lines(plain, flag)
    call = f"output = model(pixel_values=pixel_values{flag})"
    patches = f"output.last_hidden_state[:, {info.prefix_tokens}:]"
    if masks:
        return (
            call,
            f"grid = (pixel_values.shape[2] // {info.patch}, pixel_values.shape[3] // {info.patch})",
            f"maps = {patches}.transpose(1, 2).unflatten(2, grid)",
        )
    if info.family in ("clip", "siglip"):
        pooling = getattr(plain.backbone.get_submodule("model").config, "vision_use_head", True)
        return call, f"features = {'output.pooler_output' if pooling else patches + '.mean(dim=1)'}"
    return call, "features = output.last_hidden_state[:, 0]"


def _block_lines(plain: Plain, flag: str) -> tuple[str, ...]:
    """What several blocks say: hidden states are those before each block, and after the last."""
    row, reads = FAMILIES[plain.backbone.info.family], plain.network.reads
    token = "[:, 0]" if row.class_tokens else ".mean(dim=1)"
    # The library's own norm has been over its last hidden states, unless it is one for the class token alone.
    normed = {plain.backbone.info.depth - 1} if row.norm_of == "tokens" else set()
    rest = [index + 1 for index in reads if index not in normed]
    return (
        f"output = model(pixel_values=pixel_values, output_hidden_states=True{flag})",
        f"read = [model.{row.norm}(output.hidden_states[index]){token} for index in {rest}]",
        *(f"read.append(output.last_hidden_state{token})" for _ in normed.intersection(reads)),
        "features = torch.cat(read, dim=1)",
    )


def head_code(plain: Plain, found: HeadFile) -> str:
    """Python that defines ``logits(model, head, pixel_values)``; needs torch alone.

    Where a stock model must be changed before it is used, it defines ``prepare(model)`` too.
    """
    body = [*reading_lines(plain), *found.lines]
    before = _DILATE if plain.backbone.info.family == "resnet" else ()
    return "\n".join(
        [
            "import torch",
            "from torch.nn import functional as F",
            *before,
            "",
            "",
            "@torch.no_grad()",
            "def logits(model, head, pixel_values):",
            *(f"    {line}" for line in body),
        ]
    )


def run_code(code: str) -> Callable[[Any, dict[str, Tensor], Tensor], Tensor]:
    """The function that the code of ``head_code`` defines: a card's own lines are what an export is checked by."""
    scope: dict[str, Any] = {}
    exec(compile(code, "card", "exec"), scope)
    prepare, logits = scope.get("prepare", lambda model: model), scope["logits"]

    def run(model: Any, head: dict[str, Tensor], pixel_values: Tensor) -> Tensor:
        found: Tensor = logits(prepare(model), head, pixel_values)
        return found

    return run


def _rows(plain: Plain) -> Tensor:
    channels = range(plain.head.classes) if plain.channels is None else plain.channels
    return torch.tensor(list(channels), dtype=torch.int64)
