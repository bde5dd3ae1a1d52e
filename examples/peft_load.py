"""Classify pictures with what sapwood learned, by PEFT and transformers alone: no sapwood is needed here.

    sapwood export STATE --to peft OUT
    python examples/peft_load.py OUT picture.jpg ...

OUT names the backbone on the hub; weights from elsewhere are given as a folder: ``--base FOLDER``. For backbones whose
features are the class token after the last norm, or the pooler's output (DINOv2, ViT, DeiT, CLIP, SigLIP).

Needs: pip install peft transformers safetensors pillow
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch.nn import functional as F


def stock_model(folder: Path, base: str | None) -> torch.nn.Module:
    """The backbone as it came, of the class that the adapter was made for."""
    config = json.loads((folder / "adapter_config.json").read_text())
    wanted = config["auto_mapping"]
    model_class = getattr(importlib.import_module(wanted["parent_library"]), wanted["base_model_class"])
    if base is None and config["base_model_name_or_path"] is None:
        raise SystemExit(
            f"{folder} names no backbone on the hub; give the folder of its weights with --base "
            "(`sapwood pack STATE PACKED` writes them into PACKED/backbone)"
        )
    if base is None:
        return model_class.from_pretrained(config["base_model_name_or_path"], revision=config["revision"])
    return model_class.from_pretrained(base)


def rgb(path: Path) -> Image.Image:
    """A picture as it was taught: turned upright, what is clear over white, 16-bit grey in 8 bits."""
    picture = ImageOps.exif_transpose(Image.open(path))
    if picture.mode.startswith("I"):
        picture = Image.fromarray(np.round(np.asarray(picture) / 257).astype(np.uint8))
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    return picture.convert("RGB")


def view(path: Path, rules: dict) -> torch.Tensor:
    """A file as the network takes it [3, S, S]: the central square, resized and normalised."""
    size = rules["size"][0]
    picture = rgb(path)
    small, most = min(picture.size), round(1.25 * size)
    if small > most:  # a large one is reduced first, as when it was taught
        lengths = [round(each * most / small) for each in picture.size]
        picture = picture.resize(lengths, Image.Resampling.BICUBIC, reducing_gap=3)
    side = min(picture.size)
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    picture = picture.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    pixels = np.asarray(picture, np.float32) / 255
    return torch.from_numpy((pixels - np.float32(rules["mean"])) / np.float32(rules["std"])).permute(2, 0, 1)


def logits(features: torch.Tensor, head: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the head beside the adapter says of features [B, d]; the four forms that heads of pictures have."""
    if "bias" in head:
        return F.linear(features, head["weight"], head["bias"])
    if "projection" in head:
        return torch.relu(features @ head["projection"]) @ head["weight"] / head["temperature"]
    found = F.linear(F.normalize(features, dim=1), F.normalize(head["weight"], dim=1))
    found = found * head["scale"] if "scale" in head else found.masked_fill(head["empty"].bool(), -1.0)
    return found / head["temperature"]


def read(model: torch.nn.Module, pixels: torch.Tensor, facts: dict, options: dict) -> torch.Tensor:
    """The features [B, d] that the head was fitted on: the model's own, or the class tokens of several blocks."""
    if not facts["blocks"]:
        output = model(pixel_values=pixels, **options)
        pooled = facts["base_class"].startswith(("CLIP", "Siglip"))
        return output.pooler_output if pooled else output.last_hidden_state[:, 0]
    if facts["base_class"].startswith("Siglip"):
        raise SystemExit("this model has no class token; the card beside it shows how its blocks are read")
    norm = model.get_base_model().get_submodule(facts["norm"])
    output = model(pixel_values=pixels, output_hidden_states=True, **options)
    last = len(output.hidden_states) - 2
    # The library's own norm has been over its last hidden states, but for CLIP's, which is for the class token alone.
    found = [
        output.last_hidden_state[:, 0]
        if block == last and not facts["base_class"].startswith("CLIP")
        else norm(output.hidden_states[block + 1][:, 0])
        for block in facts["blocks"]
    ]
    return torch.cat(found, dim=1)


@torch.no_grad()
def main() -> None:
    """Print each picture's class and score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what sapwood export --to peft wrote")
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--base", help="folder or hub id of the backbone, in place of the one that OUT names")
    given = parser.parse_args()

    facts = json.loads((given.folder / "sapwood-export.json").read_text())
    model = PeftModel.from_pretrained(stock_model(given.folder, given.base), given.folder).eval()
    head = load_file(given.folder / "head.safetensors")

    for path in given.pictures:
        pixels = view(path, facts["preprocessing"])[None]
        options = {} if "Dinov2" in facts["base_class"] else {"interpolate_pos_encoding": True}
        features = read(model, pixels, facts, options)
        scores = logits(features, head).softmax(1)[0]
        print(f"{path}: {facts['classes'][int(scores.argmax())]} {scores.max():.4f}")


if __name__ == "__main__":
    main()
