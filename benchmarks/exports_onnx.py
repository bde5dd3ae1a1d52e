"""ONNX Runtime beside torch's eager mode; a part of ``benchmarks/exports.py``, which runs and prints it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import torch

from sapwood.export import Plain, export
from sapwood.state import State


def onnx_ratio(state: Path, folder: Path, pixels: torch.Tensor, turns: int) -> dict[str, Any]:
    """Median and quartiles of ONNX Runtime / the merged network in torch, in as many threads, turn by turn.

    Args:
        state: a state that has learned.
        folder: an empty place.
        pixels: normalised pictures [B, 3, H, W] float32 of the state's size.
        turns: how often.
    """
    from exports import ratios  # imported here: that file imports this one

    made = export(state, folder / "onnx.onnx", "onnx")
    plain = Plain.open(State.open(state)).eval()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(made.path), options, providers=["CPUExecutionProvider"])
    given = {"pixel_values": pixels.numpy()}

    @torch.no_grad()
    def eager() -> None:
        plain(pixels)

    def runtime() -> None:
        session.run(None, given)

    return ratios(runtime, eager, turns) | {"max_difference": made.max_difference, "bytes": made.bytes}
