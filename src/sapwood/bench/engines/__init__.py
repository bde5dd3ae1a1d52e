"""Where the runs of a bench run. An engine is one file and one line here, or an entry point ``sapwood.engines``.

Engines start, stop and watch; which runs there are, what is done already, retries and results are the pool's.
"""

from __future__ import annotations

from dataclasses import fields

from sapwood.bench.engines.base import Engine, Options
from sapwood.bench.engines.process import Processes
from sapwood.bench.engines.ray import Cluster
from sapwood.errors import ConfigError
from sapwood.registry import Registry

__all__ = ["ENGINES", "make_engine"]

ENGINES: Registry[type[Engine]] = Registry("engine", "engines")
ENGINES.add("process", Processes)
ENGINES.add("ray", Cluster)


def make_engine(name: str, options: Options) -> Engine:
    """An engine by name, not open yet.

    >>> make_engine("process", Options(jobs=2, cpus_per_run=4))
    Traceback (most recent call last):
    ...
    sapwood.errors.ConfigError: --cpus-per-run is not for --engine process

    Raises:
        UnknownName: there is no such engine.
        ConfigError: the engine does not know an option that is given, or is not installed.
    """
    kind = ENGINES[name]
    given = [one.name for one in fields(options) if getattr(options, one.name) is not None]
    strange = [f"--{option.replace('_', '-')}" for option in given if option not in kind.takes]
    if strange:
        raise ConfigError(f"{', '.join(strange)} is not for --engine {name}")
    return kind(options)
