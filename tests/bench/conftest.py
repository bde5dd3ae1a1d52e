"""``sapwood bench`` in this process, its rows in others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from row_processes import Rows

from sapwood.cli import main

from .helpers import TINY, Result


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A benchmark of four classes in two tasks."""
    folder, random = tmp_path_factory.mktemp("pictures") / "animals", np.random.default_rng(0)
    for name in ("ant", "bee", "cat", "dog"):
        (folder / name).mkdir(parents=True)
        for index in range(15):
            pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return f"own:{folder}:2"


@pytest.fixture
def command(own: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """``sapwood bench`` in this process."""

    def run(out: Path, *more: str, benchmark: str = own) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["bench", benchmark, "--out", str(out), *TINY, *more])
        return Result(int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def bench(command: Callable[..., Result], forked_rows: Rows) -> Callable[..., Result]:
    """The same; rows that run as processes of this machine need not import anew."""
    return command
