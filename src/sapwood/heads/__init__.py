"""Heads: for pictures by gradient (linear, cosine) or from statistics (prototype, ridge); for masks (dense)."""

from __future__ import annotations

from sapwood.heads.base import Features, Head, PooledHead
from sapwood.heads.cosine import CosineHead
from sapwood.heads.dense import DenseHead
from sapwood.heads.linear import LinearHead
from sapwood.heads.prototype import PrototypeHead
from sapwood.heads.ridge import RidgeHead
from sapwood.registry import Registry

__all__ = [
    "HEADS",
    "CosineHead",
    "DenseHead",
    "Features",
    "Head",
    "LinearHead",
    "PooledHead",
    "PrototypeHead",
    "RidgeHead",
]

HEADS: Registry[type[Head]] = Registry("head", "heads")
for _head in (LinearHead, CosineHead, PrototypeHead, RidgeHead, DenseHead):
    HEADS.add(_head.name, _head)
