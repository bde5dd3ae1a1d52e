"""The lines of Python that a card shows, so that somebody without sapwood gets an answer. Tests run them."""

from __future__ import annotations

from sapwood.export.dense_file import decision_lines
from sapwood.export.plain import Plain
from sapwood.export.views import HEADROOM
from sapwood.heads.dense import DenseHead

READ = """\
def rgb(path):  # as it was taught: upright, what is clear over white, 16-bit grey in 8 bits
    picture = ImageOps.exif_transpose(Image.open(path))
    if picture.mode.startswith("I"):
        picture = Image.fromarray(np.round(np.asarray(picture) / 257).astype(np.uint8))
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return picture.convert("RGB")"""
_SQUARE = """\
small = min(picture.size)
if small > {reach}:  # a large one is reduced first, as when it was taught
    size = [round(side * {reach} / small) for side in picture.size]
    picture, small = picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=3), {reach}
left, top = ((side - small) / 2 for side in picture.size)
box = (left, top, left + small, top + small)
view = picture.resize(({width}, {height}), Image.Resampling.BICUBIC, box=box)"""


def square(height: int, width: int) -> str:
    """The central square at the network's size; where it begins between two pixels, image processors round."""
    return _SQUARE.format(reach=round(height * HEADROOM), height=height, width=width)


def classifier_usage(plain: Plain) -> str:
    """For a stock classifier."""
    return f"""\
Opened by stock `transformers` (and `torch`); nothing else is needed.

```python
import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModelForImageClassification


{READ}


folder = "."
processor = AutoImageProcessor.from_pretrained(folder)
model = AutoModelForImageClassification.from_pretrained(folder).eval()

picture = rgb("picture.jpg")
{square(*plain.image_size)}
with torch.no_grad():
    scores = model(**processor(view, return_tensors="pt")).logits.softmax(1)[0]
print(model.config.id2label[int(scores.argmax())], float(scores.max()))
```

The softmax of the logits is the score; the temperature ({plain.head.temperature:.4g}) is in the weights already."""


def encoder_usage(plain: Plain, code: str) -> str:
    """For a stock encoder with the head beside it."""
    head = plain.head
    show = ['picture = rgb("picture.jpg")']
    if isinstance(head, DenseHead):
        show += [
            'pixel_values = processor(picture, return_tensors="pt")["pixel_values"]',
            "found = logits(model, head, pixel_values)",
            'found = F.interpolate(found, (picture.height, picture.width), mode="bilinear")',
            *decision_lines(head),
            "print([model.config.id2label[int(channel)] for channel in mask.unique()])",
        ]
        why = "It draws masks: `logits` gives a map on the encoder's grid, which is enlarged to the picture's size."
    else:
        show += [
            square(*plain.image_size),
            'pixel_values = processor(view, return_tensors="pt")["pixel_values"]',
            "scores = logits(model, head, pixel_values).softmax(1)[0]",
            "print(model.config.id2label[int(scores.argmax())], float(scores.max()))",
        ]
        why = "No stock classifier holds this head exactly, so it lies beside the encoder in `head.safetensors`."
    lines = "\n".join(show)
    prepare = "\nmodel = prepare(model)" if "def prepare(" in code else ""
    if prepare:
        why += " The stock network has a larger stride; `prepare` gives it the one it was taught with."
    return f"""\
{why} Stock `transformers` and `torch` are all that is needed.

```python
import numpy as np
from PIL import Image, ImageOps
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel
{code}


{READ}


folder = "."
processor = AutoImageProcessor.from_pretrained(folder)
model = AutoModel.from_pretrained(folder).eval(){prepare}
head = load_file(f"{{folder}}/head.safetensors")
{lines}
```"""
