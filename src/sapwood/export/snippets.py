"""The lines of Python that a card shows, so that somebody without sapwood gets an answer. Tests run them."""

from __future__ import annotations

from sapwood.export.dense_file import decision_lines
from sapwood.export.plain import Plain
from sapwood.heads.dense import DenseHead


def classifier_usage(plain: Plain) -> str:
    """For a stock classifier."""
    return f"""\
Opened by stock `transformers` (and `torch`); nothing else is needed.

```python
import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModelForImageClassification

folder = "."
processor = AutoImageProcessor.from_pretrained(folder)
model = AutoModelForImageClassification.from_pretrained(folder).eval()

picture = ImageOps.exif_transpose(Image.open("picture.jpg")).convert("RGB")
with torch.no_grad():
    scores = model(**processor(picture, return_tensors="pt")).logits.softmax(1)[0]
print(model.config.id2label[int(scores.argmax())], float(scores.max()))
```

The softmax of the logits is the score; the temperature ({plain.head.temperature:.4g}) is in the weights already."""


def encoder_usage(plain: Plain, code: str) -> str:
    """For a stock encoder with the head beside it."""
    head = plain.head
    show = [
        'picture = ImageOps.exif_transpose(Image.open("picture.jpg")).convert("RGB")',
        'pixel_values = processor(picture, return_tensors="pt")["pixel_values"]',
    ]
    if isinstance(head, DenseHead):
        show += [
            "found = logits(model, head, pixel_values)",
            'found = F.interpolate(found, (picture.height, picture.width), mode="bilinear")',
            *decision_lines(head),
            "print([model.config.id2label[int(channel)] for channel in mask.unique()])",
        ]
        why = "It draws masks: `logits` gives a map on the encoder's grid, which is enlarged to the picture's size."
    else:
        show += [
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
from PIL import Image, ImageOps
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel
{code}


folder = "."
processor = AutoImageProcessor.from_pretrained(folder)
model = AutoModel.from_pretrained(folder).eval(){prepare}
head = load_file(f"{{folder}}/head.safetensors")
{lines}
```"""
