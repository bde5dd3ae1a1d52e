"""Rows of a bench in processes forked from the tests' own; ``python -m sapwood.bench.worker SPEC`` imports anew."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest
from forking import Forked, fork


class Rows:
    """Those that were started, the latest last."""

    def __init__(self) -> None:
        self.begun: list[Forked] = []

    def start(self, command: Sequence[str], stdout: BinaryIO, **_: Any) -> Forked:
        """In place of ``subprocess.Popen``: the row that the command is for, its output in the same log."""
        assert list(command[:-1]) == [sys.executable, "-m", "sapwood.bench.worker"]
        from sapwood.bench import worker  # once for all rows

        spec = json.loads(command[-1])
        with open(stdout.name, "ab") as log:
            self.begun.append(fork(lambda: worker.main(spec), log.fileno(), log.fileno()))
        return self.begun[-1]


@pytest.fixture
def forked_rows(monkeypatch: pytest.MonkeyPatch) -> Rows:
    """Benches of this process run their rows so; where torch has a GPU, whose threads outlive no fork, as ever."""
    import torch

    from sapwood.bench.engines import process

    rows = Rows()
    if hasattr(os, "fork") and not torch.cuda.is_available():
        monkeypatch.setattr(process, "subprocess", SimpleNamespace(Popen=rows.start))
    return rows
