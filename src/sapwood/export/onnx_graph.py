"""From a network to an ONNX graph, and what the file says about itself."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sapwood.errors import ConfigError
from sapwood.export.card import preprocessing_facts
from sapwood.export.onnx_resize import Preprocess
from sapwood.export.options import Options
from sapwood.export.plain import Plain
from sapwood.functional.resize import at_size

METADATA = "sapwood"
"""Key in the file's ``metadata_props`` under which all that it says about itself lies as JSON."""

OUTPUT = "logits"
_LARGEST = 2**31 - 2**24  # one protobuf message, with room for what is no weight


class Graph(nn.Module):
    """What the file computes, in torch.

    ``pixel_values`` float32 [B, 3, H, W], or ``images`` uint8 [B, H, W, 3] with the preprocessing inside, to ``logits``
    [B, K], whose softmax is the score; of masks [B, K, H, W] at the input's size, whose largest channel is the class.
    """

    def __init__(self, plain: Plain, inside: bool) -> None:
        super().__init__()
        self.plain = plain
        self.maps = plain.kind == "segmentation"
        info = plain.backbone.info
        self.preprocess = Preprocess(plain.image_size, not self.maps, info.mean, info.std) if inside else None

    @property
    def input(self) -> str:
        """Name of the input."""
        return "pixel_values" if self.preprocess is None else "images"

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits of a batch."""
        if self.preprocess is None:
            size, pixels = pictures.shape[2:], pictures
        else:
            size, pixels = pictures.shape[1:3], self.preprocess(pictures)
        logits: Tensor = self.plain(pixels)
        return self.plain.head.decision(at_size(logits, size)) if self.maps else logits


def trace(graph: Graph, *, any_size: bool) -> Any:
    """The graph as an ``onnx.ModelProto`` of dynamic batch, and of dynamic size of the input if ``any_size``.

    Raises:
        ConfigError: the weights do not fit into one file.
        Exception: whatever torch's exporter raises where it cannot hold the computation.
    """
    if 4 * sum(tensor.numel() for tensor in (*graph.parameters(), *graph.buffers())) > _LARGEST:
        raise ConfigError("the weights have more than 2 GB, which one ONNX file cannot hold; export with --to merged")
    height, width = graph.plain.image_size
    if any_size and height == width:
        width += graph.plain.backbone.info.patch  # equal sides would be taken for one
    dynamic = torch.export.Dim.DYNAMIC
    if graph.preprocess is None:
        example, sides = torch.zeros(2, 3, height, width), (2, 3)
    else:
        example, sides = torch.zeros(2, height, width, 3, dtype=torch.uint8), (1, 2)
    shapes = {0: dynamic, **(dict.fromkeys(sides, dynamic) if any_size else {})}
    with quietly(), torch.no_grad():
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            dynamic_shapes=(shapes,),
            input_names=[graph.input],
            output_names=[OUTPUT],
            external_data=False,
            verbose=False,
        )
        assert program is not None
        model = program.model_proto
    _tidy(model, sides)
    return model


def describe(model: Any, facts: Mapping[str, Any]) -> None:
    """Write facts into the file's metadata."""
    import onnx

    onnx.helper.set_model_props(model, {METADATA: json.dumps(facts, ensure_ascii=False)})


def metadata(graph: Graph, options: Options, *, any_size: bool) -> dict[str, Any]:
    """What the file says about itself: all that a program needs to use it, as JSON."""
    plain, info = graph.plain, graph.plain.backbone.info
    inside = graph.preprocess is not None
    if inside:
        given = "uint8 [batch, height, width, 3], RGB, any size, all of a batch alike"
    else:
        height, width = ("height", "width") if any_size else options.image_size
        given = f"float32 [batch, 3, {height}, {width}], RGB, preprocessed"
        given += f"; height and width are multiples of {info.patch}" if any_size else ""
    decides = graph.maps and plain.head.decides
    return {
        "version": plain.version,
        "kind": plain.kind,
        "classes": list(plain.classes),
        "input": {"name": graph.input, "is": given},
        "output": {
            "name": OUTPUT,
            "is": "[batch, class, height, width] at the input's size; the largest is the class"
            if graph.maps
            else "[batch, class]; softmax is the score",
            "softmax": not decides,
        },
        "image_size": list(options.image_size),
        "any_size": any_size,
        "preprocessing": {**preprocessing_facts(plain), "inside": inside},
        "dtype": options.dtype,
        "backbone": {"name": info.name, "revision": info.revision, "sha256": info.sha256, "licence": info.licence},
    }


@contextmanager
def quietly() -> Iterator[None]:
    """Without what exporter and quantiser say of themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _tidy(model: Any, sides: tuple[int, int]) -> None:
    """Name the free axes, and take out what the exporter tells of the program it ran in."""
    graph = model.graph
    names = {0: "batch", sides[0]: "height", sides[1]: "width"}
    found: dict[str, str] = {}
    for axis, name in names.items():
        held = graph.input[0].type.tensor_type.shape.dim[axis]
        if held.dim_param:
            found[held.dim_param] = name
    for value in (*graph.input, *graph.output):
        for held in value.type.tensor_type.shape.dim:
            if held.dim_param:
                held.dim_param = found.get(held.dim_param, held.dim_param)
    del graph.value_info[:]
    del model.metadata_props[:], graph.metadata_props[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer, *model.functions):
        del part.metadata_props[:]
        part.doc_string = ""
    for function in model.functions:
        del function.value_info[:]
        for node in function.node:
            del node.metadata_props[:]
            node.doc_string = ""
