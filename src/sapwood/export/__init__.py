"""Ship what was learned: formats that other tools open. A new format is one file, and one line here."""

from __future__ import annotations

import os
from typing import Any

from sapwood.export.merged import MERGED
from sapwood.export.onnx import ONNX
from sapwood.export.options import Check, Dtype, Format, Labelled, Options
from sapwood.export.peft import PEFT
from sapwood.export.plain import Plain
from sapwood.export.shipping import Shipped, restricted, ship
from sapwood.registry import Registry

__all__ = ["FORMATS", "Check", "Format", "Labelled", "Options", "Plain", "Shipped", "export", "restricted"]

FORMATS: Registry[Format] = Registry("format", "formats")
FORMATS.add("merged", MERGED)
FORMATS.add("onnx", ONNX)
FORMATS.add("peft", PEFT)


def export(
    state: str | os.PathLike[str],
    out: str | os.PathLike[str],
    to: str = "merged",
    *,
    force: bool = False,
    task: int | None = None,
    dtype: Dtype = "fp32",
    preprocessing: bool = False,
    data: Any = None,
    accept_licence: bool = False,
) -> Shipped:
    """Write the current version of a state in a form that other tools open.

    Args:
        state: the state folder.
        out: where to; a folder, or for a format of one file a name with its suffix.
        to: name of the format, an entry of ``FORMATS``.
        force: replace what an earlier export left at ``out``.
        task: of an adapter that chooses between rounds, the round (from 1) whose expert leaves, with its classes.
        dtype: of the weights: ``fp32``, ``fp16`` or ``int8``, where the format knows it.
        preprocessing: resize and normalisation inside the file, where the format knows it.
        data: labelled pictures to check on, and to measure what ``dtype`` costs; made-up ones are checked on without.
        accept_licence: the licence of the backbone's weights has been read; asked for where it is unknown or
            restricts the use.

    Raises:
        ConfigError: nothing learned yet, ``out`` is there, an option that the format has not, a licence.
        NotMergeable: the change depends on the picture and the format holds weights alone; nothing is written.
        SapwoodError: the files answer differently than the network; nothing is written.
    """
    return ship(
        state,
        out,
        to,
        FORMATS[to],
        force=force,
        task=task,
        dtype=dtype,
        preprocessing_inside=preprocessing,
        data=data,
        accept_licence=accept_licence,
    )
