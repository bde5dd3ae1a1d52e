"""Processes that learn together, forked from the tests' own: seconds faster than a launcher's, which import anew."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest

Work = Callable[[int], Any]
_PATIENCE = 240  # seconds


class Meeting:
    """``start`` processes once; they meet over gloo, and their work gives JSON or raises an error for users."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.children: list[int] = []

    def start(self, processes: int, work: Work, machines: int = 1) -> list[int]:
        """Begin ``work(rank)`` in so many processes, as if they stood on so many machines; their ids."""
        from sapwood.backbones import create_backbone

        create_backbone("random:dinov2-tiny", 28)  # what the first one imports, once for all
        for rank in range(processes):
            if not (child := os.fork()):
                self._take_part(rank, processes, machines, work)
            self.children.append(child)
        return self.children

    def told(self) -> list[dict[str, Any]]:
        """What each has to say, once all have ended: {"value"}, or {"error"}: name and text of one for users."""
        limit = time.monotonic() + _PATIENCE
        for rank, child in enumerate(self.children):
            while not (ended := os.waitpid(child, os.WNOHANG))[0]:
                assert time.monotonic() < limit, f"process {rank} waits for another one"
                time.sleep(0.01)
            code = os.waitstatus_to_exitcode(ended[1])
            assert code == 0, (code, (self.folder / f"{rank}.txt").read_text())
        return [json.loads((self.folder / f"{rank}.json").read_text()) for rank in range(len(self.children))]

    def values(self, processes: int, work: Work) -> list[Any]:
        """What ``work`` gives in each of so many processes."""
        self.start(processes, work)
        return [each["value"] for each in self.told()]

    def kill(self) -> None:
        """End those that have not ended."""
        for child in self.children:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)

    def _take_part(self, rank: int, processes: int, machines: int, work: Work) -> NoReturn:
        status = 1
        try:
            import torch
            from accelerate.state import AcceleratorState

            from sapwood.errors import SapwoodError

            AcceleratorState._reset_state(reset_partial_state=True)  # of the tests' process
            os.environ["ACCELERATE_USE_CPU"] = "1"
            if processes > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank // machines), "WORLD_SIZE": str(processes)}
                group = {"rank": rank, "world_size": processes}
                torch.distributed.init_process_group("gloo", f"file://{self.folder}/meeting", **group)
            try:
                told = {"value": work(rank)}
            except SapwoodError as error:
                told = {"error": f"{type(error).__name__}: {error}"}
            (self.folder / f"{rank}.json").write_text(json.dumps(told))
            if processes > 1:
                torch.distributed.barrier()
            status = 0
        except BaseException:
            (self.folder / f"{rank}.txt").write_text(traceback.format_exc())
        finally:
            os._exit(status)


@pytest.fixture
def meeting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Meeting]]:
    """``meeting()`` makes one; only where processes fork, and no GPU is torch's: its threads do not outlive a fork."""
    import torch

    if sys.platform != "linux" or torch.cuda.is_available():
        pytest.skip("forks processes that meet on processors")
    made: list[Meeting] = []

    def make() -> Meeting:
        made.append(Meeting(tmp_path_factory.mktemp("meeting")))
        return made[-1]

    yield make
    for each in made:
        each.kill()
