"""How a LoRA for PEFT is loaded: the stock backbone, the adapter on it, and the head behind, as code and as a card."""

from __future__ import annotations

import re
from typing import Any

from sapwood.backbones.aliases import ALIASES
from sapwood.backbones.architectures import ARCHITECTURES
from sapwood.backbones.base import Backbone
from sapwood.export.head_file import HEAD, HeadFile, head_code
from sapwood.export.plain import Plain

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def hub_id(name: str) -> str | None:
    """Id on the hub of a backbone by its name; None where the weights come from elsewhere.

    >>> hub_id("dinov2-small"), hub_id("random:vit-tiny"), hub_id("google/vit-base-patch16-224")
    ('facebook/dinov2-small', None, 'google/vit-base-patch16-224')
    """
    if name in ALIASES:
        return ALIASES[name].repo
    return name if _HUB_ID.fullmatch(name) and not name.startswith(".") else None


def dilated(backbone: Backbone) -> bool:
    """Whether layers were spread after loading, which PEFT's own convolutions would not be: merge first."""
    return any(site.kernel is not None and site.kernel.dilation != (1, 1) for site in backbone.sites)


def stock_class(plain: Plain) -> type[Any]:
    """The class of the library's model that the adapter is made for."""
    return type(plain.backbone.get_submodule("model"))


def head_function(plain: Plain, found: HeadFile) -> str:
    """Python that defines ``logits(model, head, pixel_values)``, as ``head_code``, and for timm's models too."""
    if plain.backbone.info.family != "timm":
        return head_code(plain, found)
    lines = ["@torch.no_grad()", "def logits(model, head, pixel_values):"]
    lines += [f"    {line}" for line in (*_timm_reading(plain), *found.lines)]
    return "\n".join(["import torch", "from torch.nn import functional as F", "", "", *lines])


def usage(plain: Plain, found: HeadFile, folder: str) -> str:
    """Markdown: how to load what was written, with code that runs as it stands."""
    base, note = _base(plain)
    load = [
        *base,
        f'model = PeftModel.from_pretrained(base, "{folder}").eval()',
        *(("model = prepare(model.merge_and_unload())",) if dilated(plain.backbone) else ()),
        f'head = load_file("{folder}/{HEAD}")',
    ]
    code = "\n".join(
        [
            head_function(plain, found).replace("import torch\n", f"import torch\n{_imports(plain)}\n", 1),
            "",
            "",
            *load,
            "scores = logits(model, head, pixel_values).softmax(1)",
        ]
    )
    return (
        f"The learned change of the weights as a LoRA of [PEFT](https://github.com/huggingface/peft), for a "
        f"`{stock_class(plain).__name__}` as it came, and the head beside it (`{HEAD}`: {found.form}). {note} "
        f'`pixel_values` [B, 3, H, W] of pictures are what `AutoImageProcessor.from_pretrained("{folder}")` of '
        f"transformers makes of them.\n\n"
        f"```python\n{code}\n```"
    )


def _timm_reading(plain: Plain) -> tuple[str, ...]:
    info, hidden = plain.backbone.info, "hidden = model.forward_features(pixel_values)"
    if plain.kind != "segmentation":
        return hidden, "features = model.forward_head(hidden, pre_logits=True)"
    grid = f"grid = (pixel_values.shape[2] // {info.patch}, pixel_values.shape[3] // {info.patch})"
    return hidden, grid, f"maps = hidden[:, {info.prefix_tokens}:].transpose(1, 2).unflatten(2, grid)"


def _imports(plain: Plain) -> str:
    library = "import timm" if plain.backbone.info.family == "timm" else None
    taken = [] if library else [f"from transformers import {stock_class(plain).__name__}"]
    lines = ["from peft import PeftModel", "from safetensors.torch import load_file", *taken]
    return "\n".join([library, *lines] if library else lines)


def _base(plain: Plain) -> tuple[tuple[str, ...], str]:
    """Statements that make ``base``, and where its weights come from, in a sentence."""
    info, name = plain.backbone.info, stock_class(plain).__name__
    if info.family == "timm":
        model = info.name.removeprefix("timm:")
        call = f'timm.create_model("{model}", pretrained=True, num_classes=0, dynamic_img_size=True)'
        return (f"base = {call}",), f"The weights are those of timm, revision {info.revision}."
    row = ARCHITECTURES.get(info.family)
    options = "".join(f", {key}={value!r}" for key, value in (row.model_options if row else {}).items())
    hub = hub_id(info.name)
    if hub:
        call = f'{name}.from_pretrained("{hub}", revision="{info.revision}"{options})'
        return (f"base = {call}",), f"The weights are {hub} on the hub, revision {info.revision}."
    saved = (
        "Weights that the hub does not have are saved once by whoever made this, with `from sapwood.backbones import "
        'create_backbone; create_backbone(NAME).model.save_pretrained("BASE")`, NAME being the backbone of the state.'
    )
    return (f'base = {name}.from_pretrained("BASE"{options})',), saved
