"""The lines of Python that an ONNX file's card shows; a test runs them."""

from __future__ import annotations

from sapwood.export.onnx_graph import METADATA, OUTPUT, Graph
from sapwood.export.options import Options
from sapwood.export.snippets import READ, square

_RESIZE_WHOLE = "view = picture.resize(({width}, {height}), Image.Resampling.BICUBIC)"
_NORMALISE = """\
pixels = np.asarray(view, np.float32) / 255
pixels = (pixels - np.float32({mean})) / np.float32({std})
given = pixels.transpose(2, 0, 1)[None]"""
_SCORES = """\
scores = np.exp(logits - logits.max(1, keepdims=True))
scores = scores[0] / scores.sum()
print(facts["classes"][int(scores.argmax())], float(scores.max()))"""
_MASK = """\
mask = logits[0].argmax(0)
print([facts["classes"][channel] for channel in np.unique(mask)])"""


def usage(graph: Graph, options: Options) -> str:
    """For the card."""
    info, (height, width) = graph.plain.backbone.info, options.image_size
    name = options.target if options.target.endswith(".onnx") else "model.onnx"
    if graph.preprocess is None:
        resize = _RESIZE_WHOLE.format(height=height, width=width) if graph.maps else square(height, width)
        given = f"{resize}\n{_NORMALISE.format(mean=list(info.mean), std=list(info.std))}"
        what = "The file takes preprocessed pictures (`pixel_values`)."
    else:
        given = "given = np.asarray(picture)[None]"
        what = "The file takes decoded RGB pictures of any size (`images`, uint8); it resizes and normalises them."
    return f"""\
Run by ONNX Runtime; beside it `numpy` and `Pillow` are all that is needed. {what} The batch may have any size.

```python
import json

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


{READ}


session = onnxruntime.InferenceSession("{name}")
facts = json.loads(session.get_modelmeta().custom_metadata_map["{METADATA}"])

picture = rgb("picture.jpg")
{given}
(logits,) = session.run(["{OUTPUT}"], {{"{graph.input}": given}})
{_MASK if graph.maps else _SCORES}
```"""
