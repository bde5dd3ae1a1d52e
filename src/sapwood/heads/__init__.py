"""Classification heads: gradient heads (linear, cosine) and statistics heads (prototype, ridge)."""

from __future__ import annotations

from sapwood.heads.base import Features, Head
from sapwood.heads.cosine import CosineHead
from sapwood.heads.linear import LinearHead
from sapwood.heads.prototype import PrototypeHead
from sapwood.heads.ridge import RidgeHead
from sapwood.registry import Registry

__all__ = ["HEADS", "CosineHead", "Features", "Head", "LinearHead", "PrototypeHead", "RidgeHead"]

HEADS: Registry[type[Head]] = Registry("head", "heads")
for _head in (LinearHead, CosineHead, PrototypeHead, RidgeHead):
    HEADS.add(_head.name, _head)
