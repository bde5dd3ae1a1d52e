"""Runs on a Ray cluster: one of this machine that lives as long as the bench, or one that runs already.

A run is the same process as everywhere, started by an actor that Ray places where the run's cores and GPUs are free.
All machines write into one folder. Ray is imported when a cluster is opened, not before.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from sapwood.bench.engines.base import LOST, UNSEEN, End, Engine, Job, Options
from sapwood.bench.engines.nodes import Node, answers, sees
from sapwood.bench.engines.process import launch
from sapwood.errors import ConfigError, SapwoodError

_STORE = 80 * 2**20  # bytes; what Ray allows as the least, for nothing but exit codes passes through it
_PATIENCE = 60.0  # seconds that machines have to say whether they see the folder
# Environment variables are read when ray is imported. It prints what it thinks of lost processes to stdout, among JSON.
_QUIET = {"RAY_DEDUP_LOGS": "1", "RAY_DEDUP_LOGS_SKIP_REGEX": "."}
OWN = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}
"""Of a cluster that is started here: it listens to this machine alone, and only to who has the token."""
_PASSED_ON = ("SAPWOOD_DATA", "SAPWOOD_CACHE")
"""Environment variables of the bench that hold for its runs too where a machine has none of its own."""


class Cluster(Engine):
    """As many runs at once as the cluster has room for."""

    takes: ClassVar[frozenset[str]] = frozenset({"jobs", "address", "cpus_per_run", "gpus_per_run"})
    alone = False  # machines differ, and Ray itself is at work on them

    def __init__(self, options: Options) -> None:
        if find_spec("ray") is None:
            raise ConfigError("--engine ray: ray is not installed; run: pip install 'sapwood[ray]'")
        self._options = options
        self._cpus = options.cpus_per_run or 1
        self._gpus = options.gpus_per_run or 0.0
        self._environment: dict[str, str | None] = {}
        self._nodes: list[Node] = []
        self._joined = False
        self._token: Path | None = None

    def open(self) -> None:
        """Start a cluster, or join the one that the address names."""
        address = self._options.address
        if address is not None:
            answers(address)
        self._set(_QUIET | ({} if address else OWN | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}))
        import ray

        own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": _STORE}
        try:
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **({} if address else own))
        except (RuntimeError, ValueError, OSError) as error:
            raise SapwoodError(f"--engine ray: no cluster could be started or joined: {_said(error)}") from error
        self._joined = True
        nodes = [Node.of(described) for described in ray.nodes() if described["Alive"]]
        if self._options.gpus_per_run is None and any(node.gpus for node in nodes):
            self._gpus = 1.0  # as a process of its own would take the GPU
        self._nodes = [node for node in nodes if node.room(self._cpus, self._gpus)]
        if not self._nodes:
            largest = max(nodes, key=lambda node: (node.gpus, node.cpus))
            raise ConfigError(
                f"--cpus-per-run {self._cpus} with --gpus-per-run {self._gpus:g} fits no machine of the cluster; the "
                f"largest has {largest.cpus:g} CPUs and {largest.gpus:g} GPUs"
            )
        self.jobs = self._options.jobs or sum(node.room(self._cpus, self._gpus) for node in self._nodes)

    def check(self, folder: Path) -> None:
        """Refuse a folder that a machine of the cluster does not share."""
        import ray

        self._token = folder.absolute() / f".shared-{secrets.token_hex(8)}"
        self._token.touch()
        asked = {ray.remote(sees).options(**node.there()).remote(self._token): node for node in self._nodes}
        done, late = ray.wait(list(asked), num_returns=len(asked), timeout=_PATIENCE)
        if late:
            names = ", ".join(asked[one].name for one in late)
            raise ConfigError(f"{names} of the cluster did not answer within {_PATIENCE:g} seconds")
        blind = []
        for one in done:
            try:
                if not ray.get(one):
                    blind.append(asked[one].name)
            except ray.exceptions.RayError as error:
                raise ConfigError(f"{asked[one].name} of the cluster cannot run sapwood: {_said(error)}") from None
        if blind:
            raise ConfigError(
                f"--out {folder.parent} cannot be written on {', '.join(blind)} of the cluster; name a folder that all "
                f"its machines share under the same path"
            )

    def start(self, spec: Mapping[str, Any], log: Path) -> Job:
        """Ask Ray for room for a run; it waits until there is some."""
        import ray

        # Two calls at once: one that waits for the process, one that asks it to stop.
        actor = ray.remote(num_cpus=self._cpus, num_gpus=self._gpus, max_concurrency=2)(_Host).remote()
        assert self._token is not None
        order = _Order(
            {**spec, "out": str(Path(spec["out"]).absolute())},
            log.absolute(),
            self._token,
            self._cpus,
            defaults={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            demands={} if self._gpus else {"CUDA_VISIBLE_DEVICES": ""},
            cwd=os.getcwd(),
        )
        return _Remote(actor, actor.run.remote(order))

    def close(self) -> None:
        """Leave the cluster; one that ``open`` started ends."""
        if self._joined:
            import ray

            ray.shutdown()
            self._joined = False
        if self._token is not None:
            self._token.unlink(missing_ok=True)
        self._set({})

    def _set(self, wanted: Mapping[str, str]) -> None:
        """Set environment variables, those that were set before as they were."""
        for name, value in self._environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        self._environment = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)


@dataclass(frozen=True)
class _Order:
    """A run, for another machine: what ``launch`` takes, and the file by which the folder of results is known."""

    spec: dict[str, Any]
    log: Path
    token: Path
    threads: int
    defaults: dict[str, str]
    demands: dict[str, str]
    cwd: str


class _Host:
    """An actor: one run in a process of its own, on the machine that Ray chose."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopped = False
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, order: _Order) -> int:
        if not order.token.exists():
            return UNSEEN  # the machine joined the cluster after the folder was checked
        with self._lock:
            if self._stopped:
                return -signal.SIGTERM
            environment = {**order.defaults, **os.environ, **order.demands}
            cwd = order.cwd if os.path.isdir(order.cwd) else None
            self._process = launch(order.spec, order.log, order.threads, environment, cwd)
        return self._process.wait()

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.terminate()


class _Remote:
    def __init__(self, actor: Any, done: Any) -> None:
        self._actor, self._done = actor, done
        self._begun = actor.__ray_ready__.remote()

    def poll(self) -> End | None:
        import ray

        if not ray.wait([self._done], timeout=0)[0]:
            return None
        try:
            end = End(ray.get(self._done))
        except ray.exceptions.RayActorError as error:
            lost = "Ray lost the process or the machine that ran it"
            return End(LOST, _said(error) if error.actor_init_failed else lost)
        except ray.exceptions.RayError as error:
            end = End(LOST, _said(error))
        self.kill()  # which gives the room back
        return end

    def stop(self) -> None:
        import ray

        if ray.wait([self._begun], timeout=0)[0]:
            self._actor.stop.remote()
        else:
            self.kill()

    def wait(self) -> None:
        import ray

        ray.wait([self._done])

    def kill(self) -> None:
        import ray

        ray.kill(self._actor)


def _said(error: Exception) -> str:
    """The last line of what Ray says, which names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
