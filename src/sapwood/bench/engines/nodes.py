"""Machines of a Ray cluster: whether one answers, how many runs fit, whether they see a folder."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from sapwood.errors import ConfigError

_CONNECTING, _ANSWERING = 3.0, 10.0  # seconds
_ROUNDING = 1e-6  # of shares: ten times 0.1 is one GPU
# Ray itself goes on trying for two minutes, and cannot be interrupted meanwhile.
_HELLO = """
import logging, ray, sys
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
except Exception as error:
    while error.__cause__ is not None:
        error = error.__cause__
    said = str(error).strip()
    said = said.splitlines()[-1] if "Traceback" in said else said
    sys.exit("ray: " + " ".join(said.split()))
"""


@dataclass(frozen=True)
class Node:
    """A machine of a cluster.

    Attributes:
        id: by which Ray knows it.
        name: host name and address.
        cpus: all that it has, free or not.
        gpus: likewise.
    """

    id: str
    name: str
    cpus: float
    gpus: float

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Node:
        """From an entry of ``ray.nodes()``."""
        name = f"{described['NodeManagerHostname']} ({described['NodeManagerAddress']})"
        has = described["Resources"]
        return cls(described["NodeID"], name, has.get("CPU", 0.0), has.get("GPU", 0.0))

    def room(self, cpus: int, gpus: float) -> int:
        """Runs that fit at once.

        >>> node = Node("1", "here", cpus=16.0, gpus=2.0)
        >>> node.room(4, 0), node.room(1, 1), node.room(1, 0.3), node.room(32, 0)
        (4, 2, 6, 0)
        """
        by_cpu = int(self.cpus / cpus)
        if not gpus:
            return by_cpu
        if gpus < 1:  # a run has its share of one GPU
            return min(by_cpu, int(self.gpus) * int(1 / gpus + _ROUNDING))
        return min(by_cpu, int(self.gpus / gpus))

    def there(self) -> dict[str, Any]:
        """Options of a Ray task that runs there at once, whatever else does."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(self.id, soft=False)}


def sees(token: Path) -> bool:
    """Whether this machine sees a file and may write beside it."""
    beside = token.with_name(f"{token.name}-{os.getpid()}")
    try:
        beside.touch()
        beside.unlink()
    except OSError:
        return False
    return token.exists()


def answers(address: str) -> None:
    """Raise ConfigError unless a Ray cluster answers at an address.

    >>> answers("here")
    Traceback (most recent call last):
    ...
    sapwood.errors.ConfigError: --address must be HOST:PORT or auto, got 'here'
    """
    place = re.fullmatch(r"\[?(?P<host>[^/\]]+)\]?:(?P<port>\d{1,5})", address)
    if place is None and address != "auto":
        raise ConfigError(f"--address must be HOST:PORT or auto, got {address!r}")
    try:
        if place is not None:
            socket.create_connection((place["host"], int(place["port"])), _CONNECTING).close()
        # In a process of its own, which can be ended while Ray tries.
        quick = os.environ | {"RAY_NUM_REDIS_GET_RETRIES": "2"}
        command = [sys.executable, "-c", _HELLO, address]
        hello = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWERING, env=quick)
    except subprocess.TimeoutExpired:
        reason = f"no answer within {_ANSWERING:g} seconds"
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    else:
        if hello.returncode == 0:
            return
        said = [line for line in hello.stderr.splitlines() if line.startswith("ray: ")]
        reason = shorten(said[-1].removeprefix("ray: "), 300) if said else f"exit code {hello.returncode}"
    raise ConfigError(
        f"--address {address}: no Ray cluster that could be joined ({reason}); leave --address out to start one here"
    )
