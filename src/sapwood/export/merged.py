"""A folder of transformers: the learned change in the weights, and nothing left of how it was learned."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sapwood.backbones.library import quiet, transformers_class
from sapwood.export.compare import LIMIT, difference
from sapwood.export.head_file import HEAD, affine, head_code, head_file, run_code, write_head
from sapwood.export.options import Check, Format, Options
from sapwood.export.plain import Plain
from sapwood.export.processor import processor_notes, write_processor
from sapwood.export.snippets import classifier_usage, encoder_usage

# Families whose stock classifier reads what our heads read; DINOv2's reads the mean patch too, with zeros here.
_CLASSIFIERS = {
    "vit": "ViTForImageClassification",
    "deit": "DeiTForImageClassification",
    "dinov2": "Dinov2ForImageClassification",
    "dinov2-reg": "Dinov2WithRegistersForImageClassification",
}
_TABLE_OF_ONE_SIZE = ("vit", "deit")  # these read a view of another size only if told, which a stock call does not


def write(plain: Plain, folder: Path, options: Options) -> Check:
    """config.json, model.safetensors, preprocessor_config.json and, where no stock classifier fits, the head.

    Raises:
        NotMergeable: the change depends on the picture.
        ConfigError: the backbone or the head is none that can be opened without sapwood.
    """
    plain.refuse_unmerged()
    row = affine(plain) if plain.kind == "classification" and not plain.network.reads else None
    stock = row is not None and plain.backbone.info.family in _CLASSIFIERS
    if not stock:
        found = head_file(plain)
        code = head_code(plain, found)  # refuses before anything is written
    with quiet():
        if row is not None and stock:
            _classifier(plain, *row).save_pretrained(folder)
        else:
            _encoder(plain).save_pretrained(folder)
            write_head(plain, folder)
        write_processor(plain, folder)
    pixels = options.pixel_values(plain)
    with quiet(), torch.no_grad():
        expected = plain(pixels)
        if stock:
            model = transformers_class("AutoModelForImageClassification").from_pretrained(folder).eval()
            given: Tensor = model(pixel_values=pixels).logits
        else:
            from safetensors.torch import load_file

            model = transformers_class("AutoModel").from_pretrained(folder).eval()
            given = run_code(code)(model, load_file(folder / HEAD), pixels)
        notes = processor_notes(plain, folder, options)
    facts = {"opened_by": "AutoModelForImageClassification" if stock else "AutoModel", "class": type(model).__name__}
    if not stock:
        facts |= {"head": HEAD, "head_form": found.form}
    usage = classifier_usage(plain) if stock else encoder_usage(plain, code)
    return Check(difference(given, expected), LIMIT, notes, facts, usage)


def _classifier(plain: Plain, weight: Tensor, bias: Tensor) -> Any:
    """A stock classifier that shares its tensors with the network."""
    model, info = plain.backbone.get_submodule("model"), plain.backbone.info
    config = _labelled_config(model, plain)
    tensors = dict(model.state_dict())
    if info.family in _TABLE_OF_ONE_SIZE and config.image_size != plain.image_size[0]:
        tensors["embeddings.position_embeddings"] = _positions(model, plain)
        config.image_size = plain.image_size[0]
    with torch.device("meta"):
        found = transformers_class(_CLASSIFIERS[info.family])(config)
    inputs = found.classifier.in_features
    if inputs > weight.shape[1]:  # [class token, mean patch]: ours has no part of the latter
        weight = torch.cat([weight, weight.new_zeros(len(weight), inputs - weight.shape[1])], 1)
    tensors = {f"{found.base_model_prefix}.{name}": value for name, value in tensors.items()}
    tensors |= {"classifier.weight": weight, "classifier.bias": bias}
    found.load_state_dict(tensors, assign=True)
    return found.float()


def _encoder(plain: Plain) -> Any:
    """The stock encoder, with the labels in its config."""
    model = plain.backbone.get_submodule("model")
    config = _labelled_config(model, plain)
    if plain.backbone.info.family == "mit":
        config.reshape_last_stage = True
    held = copy.copy(model)
    held.config = config
    return held


def _labelled_config(model: Any, plain: Plain) -> Any:
    config = copy.deepcopy(model.config)
    config.id2label = dict(enumerate(plain.classes))
    config.label2id = {name: channel for channel, name in enumerate(plain.classes)}
    return config


@torch.no_grad()
def _positions(model: Any, plain: Plain) -> Tensor:
    """The table of positions [1, prefix + N, d] as the model itself interpolates it in every forward."""
    info, (height, width) = plain.backbone.info, plain.image_size
    cells = (height // info.patch) * (width // info.patch)
    empty = torch.zeros(1, info.prefix_tokens + cells, info.dim)
    table: Tensor = model.embeddings.interpolate_pos_encoding(empty, height, width)
    return table.detach().clone()


MERGED = Format("a folder of transformers: weights with the change inside, labels, processor", write)
