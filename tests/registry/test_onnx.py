"""Every kind of network that the recipes make, as ONNX: one recipe for each, since equal networks give equal graphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sapwood.adapters import ADAPTERS
from sapwood.export import Options, Plain
from sapwood.export.onnx import LIMIT, write
from sapwood.learner import Learner
from sapwood.methods import METHODS
from sapwood.objectives import OBJECTIVES

from .helpers import PAIRS, SIZES, Rounds, views

_SHAPING = ("projection", "decoder", "background", "stem", "branches")


def structure(method: str, kind: str) -> tuple[object, ...]:
    """What an exported graph depends on beside the values of its weights."""
    recipe = METHODS[method]
    settings = dict(recipe.settings.get("head", {}))
    if kind == "segmentation":
        settings |= OBJECTIVES[recipe.objective].head
    head = "dense" if kind == "segmentation" else recipe.head
    adapter = None if ADAPTERS[recipe.adapter].mergeable else recipe.adapter
    return kind, head, adapter, *(settings.get(name) for name in _SHAPING)


def covered(method: str, kind: str) -> bool:
    """Choices for each picture take long; those of classification have a test of their own."""
    return kind == "classification" and not ADAPTERS[METHODS[method].adapter].mergeable


FIRST = {structure(*pair): pair for pair in reversed(PAIRS) if not covered(*pair)}


@pytest.mark.slow
@pytest.mark.parametrize(("method", "kind"), FIRST.values(), ids=["-".join(pair) for pair in FIRST.values()])
def test_onnx_runtime_says_the_same(
    method: str,
    kind: str,
    learned: Callable[[str, str], Learner],
    rounds: Callable[[str], Rounds],
    tmp_path: Path,
) -> None:
    size = SIZES[kind]
    height_width = (size, size) if isinstance(size, int) else size
    options = Options(height_width, views(rounds(kind).other, kind), "decoded pictures")
    check = write(Plain.open(learned(method, kind).state), tmp_path, options, any_size=False)
    assert check.max_difference <= check.limit == LIMIT
