"""Pictures of different sizes, and who decodes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def uneven_folder(tmp_path: Path) -> Callable[[int], Path]:
    """``uneven_folder(count)``: so many pictures of cats and of dogs, no two of a class of the same size."""

    def make(count: int) -> Path:
        random = np.random.default_rng(0)
        for label in ("cat", "dog"):
            (tmp_path / "data" / label).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256, (20 + index, 40 - index, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / label / f"{index}.png")
        return tmp_path / "data"

    return make


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of all pictures that this process decodes, as often as it does."""
    import sapwood.data.mask_store
    import sapwood.data.store
    from sapwood.data.decode import decode_with_sha256

    found: list[str] = []

    def counting(picture: Any, **options: Any) -> Any:
        found.append(picture.name)
        return decode_with_sha256(picture, **options)

    for module in (sapwood.data.store, sapwood.data.mask_store):
        monkeypatch.setattr(module, "decode_with_sha256", counting)
    return found
