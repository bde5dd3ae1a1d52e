"""Smaller weights in an ONNX file, and what they cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sapwood.export.onnx_graph import quietly
from sapwood.export.options import Labelled

_SMALL = 1024  # numbers; below it halving saves nothing
_AT_ONCE = 16

Run = Callable[[Tensor], Tensor]


def half_weights(model: Any) -> None:
    """Store large float32 weights in half precision, in place; the graph computes in float32 as before.

    Weights beyond the range of half precision stay as they are.
    """
    import onnx
    from onnx import numpy_helper

    graph = model.graph
    casts = []
    for index, tensor in enumerate(list(graph.initializer)):
        if tensor.data_type != onnx.TensorProto.FLOAT or int(np.prod(tensor.dims)) < _SMALL:
            continue
        value = numpy_helper.to_array(tensor)
        if not np.abs(value).max() <= np.finfo(np.float16).max:
            continue
        name = tensor.name
        graph.initializer[index].CopyFrom(numpy_helper.from_array(value.astype(np.float16), f"{name}.half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *nodes])


def eight_bits(source: Path, target: Path, *, convolutions: bool) -> None:
    """ONNX Runtime's dynamic quantisation: weights in 8 bits, activations scaled anew for every batch.

    Args:
        source, target: files.
        convolutions: quantise them too, not products of matrices alone.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    kinds = ["MatMul", "Gemm", *(["Conv"] if convolutions else [])]
    with quietly():
        quantize_dynamic(source, target, op_types_to_quantize=kinds, weight_type=QuantType.QUInt8)


def eight_bit_words(model: Any) -> str:
    """Which layers of a quantised ``onnx.ModelProto`` hold 8 bits, and which do not."""
    kinds = Counter(node.op_type for node in model.graph.node)
    held = [
        f"{kinds[kind]} {one if kinds[kind] == 1 else many}"
        for kind, one, many in (
            ("MatMulInteger", "matrix", "matrices"),
            ("ConvInteger", "convolution", "convolutions"),
        )
        if kinds[kind]
    ]
    whole = f"; {kinds['Conv']} convolution{'' if kinds['Conv'] == 1 else 's'} in float32 as before"
    return f"int8: the weights of {' and '.join(held)}{whole if kinds['Conv'] else ''}"


def runner(path: Path) -> Run:
    """Run a file by ONNX Runtime on the CPU: input [B, ...] -> logits float32 [B, ...]."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it cannot run it raises
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()

    def run(batch: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {given.name: batch.contiguous().numpy()})[0])

    return run


def accuracy(run: Run, labelled: Labelled, prepare: Callable[[Tensor], Tensor]) -> float:
    """Fraction of labelled pictures, or of labelled pixels, whose largest logit is the right one.

    Args:
        run: input of the file -> logits.
        prepare: plain views uint8 [B, H, W, 3] -> input of the file.
    """
    right = count = 0
    pairs = zip(labelled.views.split(_AT_ONCE), labelled.targets.split(_AT_ONCE), strict=True)
    for views, targets in pairs:
        known = targets != 255 if targets.ndim > 1 else torch.ones_like(targets, dtype=torch.bool)
        right += int((run(prepare(views)).argmax(1) == targets)[known].sum())
        count += int(known.sum())
    return right / max(count, 1)
