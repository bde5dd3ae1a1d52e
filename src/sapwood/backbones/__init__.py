"""Frozen pre-trained encoders by name. Importing this does not import transformers; opening a backbone does."""

from __future__ import annotations

from sapwood.backbones.architectures import ARCHITECTURES, Architecture
from sapwood.backbones.base import Backbone, BackboneInfo, Kernel, Site, Size, Tokens, fingerprint, height_width
from sapwood.backbones.catalogue import (
    BACKBONES,
    KnownBackbone,
    create_backbone,
    known_backbones,
    plan_backbone,
    resolve_default,
)
from sapwood.backbones.families import FAMILIES, Family

__all__ = [
    "ARCHITECTURES",
    "BACKBONES",
    "FAMILIES",
    "Architecture",
    "Backbone",
    "BackboneInfo",
    "Family",
    "Kernel",
    "KnownBackbone",
    "Site",
    "Size",
    "Tokens",
    "create_backbone",
    "fingerprint",
    "height_width",
    "known_backbones",
    "plan_backbone",
    "resolve_default",
]
