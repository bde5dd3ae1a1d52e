"""Name pictures, or draw masks, with an ONNX file that sapwood exported: no sapwood and no torch is needed here.

    sapwood export STATE --to onnx model.onnx
    python examples/onnx_predict.py model.onnx picture.jpg ... [--top 3] [--out FOLDER]

The file itself says what its classes are and what it wants of a picture. Masks go to --out as PNG, one value a class
in the order of the classes.

Needs: pip install onnxruntime numpy pillow
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def rgb(path: Path) -> Image.Image:
    """A picture as it was taught: turned upright, what is clear over white, 16-bit grey in 8 bits."""
    picture = ImageOps.exif_transpose(Image.open(path))
    if picture.mode.startswith("I"):
        picture = Image.fromarray(np.round(np.asarray(picture) / 257).astype(np.uint8))
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    return picture.convert("RGB")


def reduced(picture: Image.Image, side: int) -> Image.Image:
    """A large picture with a shorter side of 1.25 times what is needed, as when it was taught."""
    small, most = min(picture.size), round(1.25 * side)
    if small <= most:
        return picture
    size = [round(each * most / small) for each in picture.size]
    return picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=3)


def view(picture: Image.Image, rules: dict) -> np.ndarray:
    """A picture as the file takes it: [1, H, W, 3] uint8 as it is, or [1, 3, h, w] float32 resized and normalised."""
    if rules["inside"]:
        return np.asarray(picture)[None]
    height, width = rules["size"]
    box = (0.0, 0.0, *map(float, picture.size))
    if rules["resize"] != "stretched":  # the central square
        picture = reduced(picture, height)
        side = min(picture.size)
        left, top = (picture.width - side) / 2, (picture.height - side) / 2
        box = (left, top, left + side, top + side)
    resized = picture.resize((width, height), Image.Resampling.BICUBIC, box=box)
    pixels = (np.asarray(resized, np.float32) / 255 - np.float32(rules["mean"])) / np.float32(rules["std"])
    return pixels.transpose(2, 0, 1)[None]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Scores of logits [K]."""
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def main() -> None:
    """Print each picture's best classes, or the share of each class in its mask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--top", type=int, default=1, help="so many classes of each picture")
    parser.add_argument("--out", type=Path, help="folder for masks")
    given = parser.parse_args()

    session = onnxruntime.InferenceSession(str(given.model), providers=["CPUExecutionProvider"])
    facts = json.loads(session.get_modelmeta().custom_metadata_map["sapwood"])
    classes = facts["classes"]
    for path in given.pictures:
        picture = rgb(path)
        batch = view(picture, facts["preprocessing"])
        (logits,) = session.run([facts["output"]["name"]], {facts["input"]["name"]: batch})
        if facts["kind"] == "classification":
            scores = softmax(logits[0].astype(np.float64))
            best = np.argsort(-scores, kind="stable")[: given.top]
            print(f"{path}: " + ", ".join(f"{classes[index]} {scores[index]:.4f}" for index in best))
            continue
        mask = Image.fromarray(logits[0].argmax(0).astype(np.uint8 if len(classes) < 256 else np.uint16))
        mask = mask.resize(picture.size, Image.Resampling.NEAREST)
        if given.out is not None:
            given.out.mkdir(parents=True, exist_ok=True)
            mask.save(given.out / f"{path.stem}.png")
        shares = np.bincount(np.asarray(mask).ravel(), minlength=len(classes)) / (mask.width * mask.height)
        print(f"{path}: " + ", ".join(f"{classes[index]} {shares[index]:.1%}" for index in np.flatnonzero(shares)))


if __name__ == "__main__":
    main()
