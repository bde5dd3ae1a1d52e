"""Frozen pre-trained encoders by name. Importing this does not import transformers; opening a backbone does."""

from __future__ import annotations

from sapwood.backbones.base import Backbone, BackboneInfo, Site, Tokens, fingerprint
from sapwood.backbones.catalogue import BACKBONES, KnownBackbone, create_backbone, known_backbones, resolve_default
from sapwood.backbones.families import FAMILIES, Family

__all__ = [
    "BACKBONES",
    "FAMILIES",
    "Backbone",
    "BackboneInfo",
    "Family",
    "KnownBackbone",
    "Site",
    "Tokens",
    "create_backbone",
    "fingerprint",
    "known_backbones",
    "resolve_default",
]
