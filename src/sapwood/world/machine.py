"""What one process of each machine does for the others there."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as group
from torch import Tensor

from sapwood.world import attempt, outcome, rank, size, together

T = TypeVar("T")

_PATIENCE = timedelta(days=7)
"""How long the others wait while the first works: it may have a million pictures to decode. A process that dies ends
the run at once, through its launcher."""


def local_rank() -> int:
    """Which of this machine's processes this is; 0 where the launcher does not say."""
    text = os.environ.get("LOCAL_RANK", "0")
    return min(int(text), rank()) if text.isdecimal() else 0


def first_of_machine(function: Callable[[], T]) -> T:
    """What ``function`` gives in the first process of this machine, where alone of this machine's it runs.

    The others wait, and raise what it raises; what the first process of another machine raises is raised here too. All
    processes must call it alike: after it all have called it. The result must be JSON.
    """
    if size() == 1:
        return function()
    here = rank() - local_rank()
    caught, told = attempt(function) if rank() == here else (None, {})
    said = _gathered(told)
    failed = [each for each in said if "error" in each]
    found: T = outcome(failed[0] if failed and "error" not in said[here] else said[here], caught)
    return found


def _gathered(told: dict[str, Any]) -> list[dict[str, Any]]:
    """What each process tells, by rank."""
    text = json.dumps(told).encode()
    lengths = _from_all(torch.tensor([len(text)]))
    mine = torch.zeros(int(max(lengths)), dtype=torch.uint8)
    mine[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    rows = zip(_from_all(mine), lengths, strict=True)
    return [json.loads(bytes(row[: int(length)].tolist())) for row, length in rows]


def _from_all(mine: Tensor) -> list[Tensor]:
    found = [torch.empty_like(mine) for _ in range(size())]
    with together():
        group.all_gather(found, mine, _patient())
    return found


@functools.cache
def _patient() -> Any:
    # Between processors, whatever is computed with: nobody's accelerator is busy waiting.
    return group.new_group(backend="gloo", timeout=_PATIENCE)
