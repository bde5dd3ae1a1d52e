"""Ship what was learned: formats that other tools open."""

from sapwood.export.formats import FORMATS
from sapwood.export.options import Check, Dtype, Format, Labelled, Options
from sapwood.export.plain import Plain
from sapwood.export.shipping import Shipped, export, restricted

__all__ = ["FORMATS", "Check", "Dtype", "Format", "Labelled", "Options", "Plain", "Shipped", "export", "restricted"]
