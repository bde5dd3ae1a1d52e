"""The processes that learn one round together: who is which, and what the first does alone; sums are in ``sums``.

A launcher starts the same command several times (``torchrun --nproc-per-node 2 -m sapwood learn …``). Every process
takes a piece of every batch; the first alone writes. With one process nothing here does anything.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from sapwood import errors
from sapwood.errors import ConfigError, SapwoodError

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """The piece of every batch that a process takes: of ``size`` pictures in a row the one that ``rank`` names.

    >>> Part(1, 2).of([7, 8, 9]), Part(1, 2).of([7]), Part(1, 2).own(1)
    ([8], [7], 0)
    """

    rank: int
    size: int

    def of(self, batch: Sequence[int]) -> list[int]:
        """The piece; of a batch too small for everyone its first picture, on loan, so that all do the same steps."""
        return list(batch[self.rank :: self.size] or batch[:1])

    def own(self, pictures: int) -> int:
        """How many pictures of a batch are the process's own, not on loan."""
        return len(range(self.rank, pictures, self.size))


WHOLE = Part(0, 1)


def launched() -> int:
    """How many processes the launcher has started."""
    text = os.environ.get("WORLD_SIZE", "1")
    return int(text) if text.isdecimal() else 1


def follows() -> bool:
    """Whether the launcher started this process beside another one that writes and speaks."""
    return launched() > 1 and os.environ.get("RANK", "0") != "0"


def begin() -> None:
    """Meet the other processes, if the launcher started several; the device is then the one meant for this process."""
    if launched() == 1 or size() > 1:
        return
    from accelerate import PartialState

    with together():
        state = PartialState()
    if state.device.type == "cuda":
        import torch

        torch.cuda.set_device(state.device)


def size() -> int:
    """Number of processes; 1 before ``begin``."""
    if launched() == 1:
        return 1
    import torch.distributed as group

    return group.get_world_size() if group.is_available() and group.is_initialized() else 1


def rank() -> int:
    """Which of them this is; 0 is the one that writes."""
    import torch.distributed as group

    return group.get_rank() if size() > 1 else 0


def part() -> Part:
    """This process's piece of every batch."""
    return Part(rank(), size())


def check_batch(batch_size: int) -> None:
    """Refuse more processes than a batch has pictures."""
    if size() > batch_size:
        raise ConfigError(
            f"{size()} processes share batches of {batch_size} pictures, so that some have none; "
            f"start at most {batch_size}, or raise --batch-size"
        )


def first(function: Callable[[], T]) -> T:
    """What ``function`` gives in the first process, where alone it runs; the others wait, and raise what it raises.

    The result must be JSON.
    """
    if size() == 1:
        return function()
    caught, told = attempt(function) if rank() == 0 else (None, {})
    found: T = outcome(_broadcast(told), caught)
    return found


def attempt(function: Callable[[], Any]) -> tuple[BaseException | None, dict[str, Any]]:
    """What ``function`` raises, and what other processes are told of what became of it."""
    try:
        return None, {"value": function()}
    except BaseException as error:
        return error, {"error": type(error).__name__, "text": str(error)}


def outcome(told: Mapping[str, Any], caught: BaseException | None = None) -> Any:
    """What the function gave that another process, or this one, has tried; raises what it raised."""
    if caught is not None:
        raise caught
    if "error" in told:
        kind = getattr(errors, told["error"], SapwoodError)
        raise (kind if issubclass(kind, SapwoodError) else SapwoodError)(told["text"])
    return told["value"]


def device() -> Any:
    """Where this process computes, and where what processes tell each other has to lie."""
    from accelerate import PartialState

    return PartialState().device


@contextmanager
def together() -> Iterator[None]:
    """Turns the failure of another process into one line."""
    try:
        yield
    except RuntimeError as error:
        raise SapwoodError(
            f"a process of this run cannot be reached ({str(error).strip().splitlines()[0]}); the state is unchanged, "
            "the same command goes on from the last checkpoint, if there is one"
        ) from error


def _broadcast(told: dict[str, Any]) -> dict[str, Any]:
    import torch
    import torch.distributed as group

    text = json.dumps(told).encode()
    length = torch.tensor([len(text)], device=device())
    with together():
        group.broadcast(length, 0)
    content = torch.zeros(int(length), dtype=torch.uint8, device=device())
    if rank() == 0:
        content.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
    with together():
        group.broadcast(content, 0)
    found: dict[str, Any] = json.loads(bytes(content.cpu().tolist()))
    return found
