"""What an engine is: it starts runs, each in a process of its own, and tells how they ended."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from sapwood.settings import check

TAKEN = 75
"""Exit code where another process is at this row already."""
UNSEEN = 78
"""Exit code where the machine of a run does not see the folder of results."""
LOST = 79
"""Exit code of a run whose process or machine is gone, so that nothing is known of it."""


@dataclass(frozen=True)
class Options:
    """How runs are spread; None where nothing was said.

    Attributes:
        jobs: most runs at once.
        address: of a cluster that runs already.
        cpus_per_run: cores that each run has for itself.
        gpus_per_run: GPUs that each run has for itself; 0.5 lets two share one.
    """

    jobs: int | None = None
    address: str | None = None
    cpus_per_run: int | None = None
    gpus_per_run: float | None = None

    def __post_init__(self) -> None:
        gpus = 0 if self.gpus_per_run is None else self.gpus_per_run
        check(
            (self.jobs is None or self.jobs >= 1, f"--jobs must be >= 1, got {self.jobs}"),
            (
                self.cpus_per_run is None or self.cpus_per_run >= 1,
                f"--cpus-per-run must be >= 1, got {self.cpus_per_run}",
            ),
            (
                0 <= gpus <= 1 or (math.isfinite(gpus) and gpus == int(gpus) >= 0),
                f"--gpus-per-run must be a whole number or between 0 and 1, got {gpus:g}",
            ),
        )


class End(NamedTuple):
    """How a run ended.

    Attributes:
        code: exit code of its process, negative for a signal, or one of those above.
        reason: what the engine knows beyond the run's log.
    """

    code: int
    reason: str = ""


class Job(Protocol):
    """A run that was started."""

    def poll(self) -> End | None:
        """How it ended; None while it runs."""

    def stop(self) -> None:
        """Ask it to write a checkpoint and end."""

    def wait(self) -> None:
        """Return once it has ended."""

    def kill(self) -> None:
        """End it at once."""


class Engine(ABC):
    """Starts runs.

    Attributes:
        takes: the options that it knows.
        jobs: most runs at once, once it is open.
        alone: whether a run has its machine for itself, so that its seconds may be compared with those of others.
    """

    takes: ClassVar[frozenset[str]]
    jobs: int
    alone: bool

    @abstractmethod
    def __init__(self, options: Options) -> None: ...

    def open(self) -> None:  # noqa: B027
        """Get ready, before anything is written; raises ConfigError where it cannot."""

    def check(self, folder: Path) -> None:  # noqa: B027
        """Raise ConfigError if runs could not write into the folder."""

    @abstractmethod
    def start(self, spec: Mapping[str, Any], log: Path) -> Job:
        """Start ``python -m sapwood.bench.worker SPEC`` with its output at the end of ``log``."""

    def close(self) -> None:  # noqa: B027
        """End all that ``open`` began; runs that are still at work are killed before."""
