"""The learned change as a LoRA of the PEFT library, which loads it onto the backbone as it came."""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sapwood.backbones.base import Backbone, Site, Tokens, first_line, height_width
from sapwood.backbones.families import FAMILIES
from sapwood.backbones.library import quiet
from sapwood.backbones.packed import open_recorded
from sapwood.errors import ConfigError, SapwoodError
from sapwood.export.head_file import HEAD, HeadFile, run_code, write_head
from sapwood.export.options import Check, Format, Options
from sapwood.export.peft_usage import dilated, head_function, hub_id, stock_class, usage
from sapwood.export.plain import Plain
from sapwood.export.processor import processor_notes, write_processor
from sapwood.functional.factorise import Pair, factor_error, fuse, numerical_factors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LIMIT = 1e-5
_MODEL = "model."  # where a backbone keeps its library's model


def write(plain: Plain, folder: Path, options: Options) -> Check:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``, load them by PEFT, compare the features.

    Every changed layer has one pair, its rank the sum of the rounds' (``rank_pattern``), without a scale
    (``lora_alpha`` equals the rank). Changes that no adapter knows as a product are factored by singular values.

    Raises:
        NotMergeable: the change depends on the picture.
        ConfigError: there is no change, or one that pairs of layers cannot hold.
        SapwoodError: PEFT is missing, or a layer's factors are further than 1e-5 from its change.
    """
    plain.refuse_unmerged()
    base = _stock(plain)
    pairs, error = _pairs(plain)
    if not pairs:
        raise ConfigError(
            f"--to peft: the adapter {plain.record['parts']['adapter']} has not changed the backbone, so there is "
            "nothing to load onto it; export the head with the backbone by --to merged"
        )
    _write(plain, pairs, folder)
    found = write_head(plain, folder)
    write_processor(plain, folder)
    differences = _differences(plain, base, found, folder, options)
    ranks = Counter(len(down) for down, _ in pairs.values())
    said = ", ".join(f"{rank} at {count} layer{'s' * (count > 1)}" for rank, count in sorted(ranks.items()))
    return Check(
        differences.features,
        LIMIT,
        notes=(
            f"rank {said}; the factors are within {error:.1e} of the learned change of every weight",
            f"the difference is that of the features in float64; with the rounding of float32 it is "
            f"{differences.rounded:.1e}, and scores differ by up to {differences.scores:.1e}",
            *processor_notes(plain, folder, options),
        ),
        facts={
            "ranks": {str(rank): count for rank, count in sorted(ranks.items())},
            "factor_error": error,
            "float32_difference": differences.rounded,
            "score_difference": differences.scores,
            "base_class": stock_class(plain).__name__,
            "blocks": list(plain.network.reads),
            "norm": FAMILIES[plain.backbone.info.family].norm if plain.network.reads else None,
            "head": found.form,
        },
        usage=usage(plain, found, options.target),
    )


def _stock(plain: Plain) -> Backbone:
    """The backbone as it came, if pairs can bring it to what was learned."""
    info, size = plain.backbone.info, plain.image_size
    if not isinstance(getattr(plain.backbone, "model", None), nn.Module):
        raise ConfigError(f"--to peft: {info.name} is no model of transformers or timm; take --to onnx")
    base = open_recorded(asdict(info), None, plain.root)
    if info.fixed_size and height_width(base.info.image_size) != size:
        raise ConfigError(
            f"--to peft: {info.name} was brought from {base.info.image_size} to {size[0]} px, which changed its tables "
            "of positions; a LoRA on the original weights would not give the same features. Take --to merged"
        )
    base.resize(size)
    if plain.network.adapter.trains_backbone:
        raise ConfigError(f"--to peft: {_moved(plain.backbone, base)}; take --to merged")
    return base


def _moved(learned: Backbone, base: Backbone) -> str:
    """What full fine-tuning has changed, in words."""
    before = base.state_dict()
    moved = [name for name, value in learned.state_dict().items() if not torch.equal(value, before[name])]
    layers = [name for name in moved if isinstance(_owner(base, name), nn.Linear | nn.Conv2d) and "bias" not in name]
    rank = max((len(numerical_factors(learned.state_dict()[name] - before[name])[0]) for name in layers[:1]), default=0)
    return (
        f"training moved {len(moved)} tensors of the backbone, {len(moved) - len(layers)} of which are no layer's "
        f"weight (biases, norms, embeddings), and the others without a low rank ({layers[0]}: rank {rank}); "
        "pairs of factors cannot hold that"
    )


def _owner(backbone: Backbone, tensor: str) -> nn.Module:
    return backbone.get_submodule(tensor.rpartition(".")[0])


def _pairs(plain: Plain) -> tuple[dict[str, Pair], float]:
    """A pair for every changed layer, by its path in the library's model, and the largest error of a weight."""
    layers: dict[str, list[tuple[Site, Pair]]] = {}
    error = 0.0
    for site in plain.network.adapter.sites:
        if (change := plain.change(site)) is None:
            continue
        pair = plain.network.adapter.factors(site) if plain.task is None else None
        if pair is None or len(pair[0]) > min(change.flatten(1).shape):
            pair = numerical_factors(change)
        error = max(error, factor_error(change, pair))
        layers.setdefault(site.module, []).append((site, pair))
    if error > LIMIT:
        raise SapwoodError(
            f"--to peft: the factors of a weight are {error:.1e} from its change, allowed {LIMIT:.0e}; take --to merged"
        )
    found = {module.removeprefix(_MODEL): _layer(plain.backbone, parts) for module, parts in layers.items()}
    return {module: pair for module, pair in found.items() if len(pair[0])}, error


def _layer(backbone: Backbone, parts: list[tuple[Site, Pair]]) -> Pair:
    """One pair for a whole layer, of which each site may be some rows (a fused projection)."""
    if parts[0][0].rows is None:
        return parts[0][1]
    outputs = backbone.get_submodule(parts[0][0].module).get_parameter("weight").shape[0]
    return fuse([(pair, site.rows or (0, outputs)) for site, pair in parts], outputs)


def _write(plain: Plain, pairs: Mapping[str, Pair], folder: Path) -> None:
    tensors: dict[str, Tensor] = {}
    for module, (down, up) in pairs.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = down.contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = up.contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(_config(plain, {module: len(down) for module, (down, _) in pairs.items()}), indent=2)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def _config(plain: Plain, ranks: Mapping[str, int]) -> dict[str, Any]:
    """``LoraConfig`` as PEFT saves it; what is left out has PEFT's defaults."""
    rank = Counter(ranks.values()).most_common(1)[0][0]
    # PEFT reads the keys as regular expressions, which may begin anywhere after a dot.
    others = {f"^{re.escape(module)}": own for module, own in ranks.items() if own != rank}
    model, info = stock_class(plain), plain.backbone.info
    hub = hub_id(info.name)
    return {
        "peft_type": "LORA",
        "task_type": None,
        "auto_mapping": {"base_model_class": model.__name__, "parent_library": model.__module__},
        "base_model_name_or_path": hub,
        "revision": info.revision if hub else None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(ranks),
        "rank_pattern": others,
        "alpha_pattern": others,
    }


class _Differences(NamedTuple):
    """Largest absolute differences between ours and PEFT's on the original backbone.

    Attributes:
        features: of all tokens, computed in float64: what the files are off by.
        rounded: of all tokens in float32, where the order of sums differs too.
        scores: of the softmax, in float32.
    """

    features: float
    rounded: float
    scores: float


@torch.no_grad()
def _differences(plain: Plain, base: Backbone, found: HeadFile, folder: Path, options: Options) -> _Differences:
    try:
        from peft import PeftModel
    except Exception as error:  # a torch or transformers that does not fit raises many kinds
        raise SapwoodError(f"--to peft needs the extra: pip install 'sapwood[export]' ({first_line(error)})") from error
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one library about the other
        model = PeftModel.from_pretrained(base.get_submodule("model"), folder).eval()
    if dilated(plain.backbone):
        model = model.merge_and_unload()
    pixels = options.pixel_values(plain)
    logits = run_code(head_function(plain, found))(model, load_file(folder / HEAD), pixels)
    scores = (logits.softmax(1) - plain(pixels).softmax(1)).abs().max().item()
    # PEFT changed the layers where they are, so that the backbone's own reading of the model now runs through them.
    rounded = _distance(plain.backbone(pixels), base(pixels))
    try:
        exact = _distance(plain.backbone.double()(pixels.double()), base.double()(pixels.double()))
    finally:
        plain.backbone.float()  # back to the same numbers
    return _Differences(exact, rounded, scores)


def _distance(one: Tokens, other: Tokens) -> float:
    pairs = [(one.pooled, other.pooled), (one.patches, other.patches), *zip(one.levels, other.levels, strict=True)]
    return max((ours - theirs).abs().max().item() for ours, theirs in pairs)


PEFT = Format("a LoRA for PEFT, to be loaded onto the stock backbone, and the head beside it", write)
