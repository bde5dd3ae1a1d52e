"""preprocessor_config.json: what stock image processors need to make our view of a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sapwood.backbones.library import transformers_class
from sapwood.data.decode import decode
from sapwood.data.pictures import as_picture
from sapwood.data.transforms import eval_view, normalise, resized
from sapwood.export.options import Options
from sapwood.export.plain import Plain
from sapwood.export.views import HEADROOM

PROCESSOR = "preprocessor_config.json"
_BICUBIC = 3
_LARGER = 2  # pictures to compare on are so many times larger than the view


def write_processor(plain: Plain, folder: Path) -> None:
    """Write the file; ``BitImageProcessor`` resizes the shorter side and crops, ``ViTImageProcessor`` stretches."""
    (folder / PROCESSOR).write_text(json.dumps(_settings(plain), indent=2) + "\n", encoding="utf-8")


def _settings(plain: Plain) -> dict[str, Any]:
    (height, width), info = plain.image_size, plain.backbone.info
    common = {
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": _BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(info.mean),
        "image_std": list(info.std),
    }
    if plain.kind == "segmentation":
        return {"image_processor_type": "ViTImageProcessor", "size": {"height": height, "width": width}, **common}
    crop = {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
    return {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": height}, **crop, **common}


def processor_notes(plain: Plain, folder: Path, options: Options) -> tuple[str, ...]:
    """How far the processor's pixel values are from ours, on pictures larger than the view."""
    processor = transformers_class("AutoImageProcessor").from_pretrained(folder)
    height, width = options.image_size
    # Of the wide ones the crop begins between two pixels, where the processor has to round and we do not.
    square, wide = ((_LARGER * height, _LARGER * width + extra) for extra in (0, 2 * ((width + 2) // 4) + 1))
    apart = {shape: _apart(processor, plain, options, shape) for shape in (square, wide)}
    cut = "" if plain.kind == "segmentation" else "; the lines on the card make what sapwood sees"
    return (
        f"AutoImageProcessor's pixels differ from sapwood's by {apart[square]:.2g} of 255 steps on average on pictures "
        f"of the view's shape, by {apart[wide]:.2g} where the central square begins between two pixels{cut}",
    )


def _apart(processor: Any, plain: Plain, options: Options, size: tuple[int, int]) -> float:
    """Mean absolute difference of pixels, in steps of 8 bits, for pictures of (height, width)."""
    height, width = options.image_size
    info = plain.backbone.info
    steps = 255 * torch.tensor(info.std).reshape(1, 3, 1, 1)
    total = 0.0
    for view in options.views.numpy():
        picture = np.asarray(Image.fromarray(view).resize((size[1], size[0]), Image.Resampling.BICUBIC))
        if plain.kind == "segmentation":
            ours = resized(picture, (height, width))
        else:
            ours = eval_view(decode(as_picture(picture, name="picture"), shorter=round(height * HEADROOM)), height)
        expected = normalise(torch.from_numpy(ours[None].copy()), info.mean, info.std)
        given = processor(Image.fromarray(picture), return_tensors="pt")["pixel_values"]
        total += float(((given - expected).abs() * steps).mean())
    return total / len(options.views)
