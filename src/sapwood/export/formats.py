"""The formats by name. A new one is one file, and one line here."""

from __future__ import annotations

from sapwood.export.merged import MERGED
from sapwood.export.onnx import ONNX
from sapwood.export.options import Format
from sapwood.export.peft import PEFT
from sapwood.registry import Registry

FORMATS: Registry[Format] = Registry("format", "formats")
FORMATS.add("merged", MERGED)
FORMATS.add("onnx", ONNX)
FORMATS.add("peft", PEFT)
