"""Benchmarks: one method through one stream of rounds, one result a run."""

from __future__ import annotations

from sapwood.bench.rows import Run
from sapwood.bench.runner import run
from sapwood.bench.streams import validation_stream

__all__ = ["Run", "run", "validation_stream"]
