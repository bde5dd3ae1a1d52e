"""Streams of tasks with a test set, by name."""

from __future__ import annotations

import re

from sapwood.data.mask_benchmarks import MASK_BENCHMARKS, MaskBenchmark, own_masks
from sapwood.data.mask_domains import MASK_DOMAINS, DomainBenchmark
from sapwood.data.masks import is_mask_data
from sapwood.data.picture_benchmarks import PICTURE_BENCHMARKS, Benchmark, PictureDomains, own_pictures
from sapwood.data.streams import Round, Stream
from sapwood.errors import ConfigError
from sapwood.registry import Registry

__all__ = ["BENCHMARKS", "OWN", "AnyBenchmark", "Round", "Stream", "benchmark_named"]

AnyBenchmark = Benchmark | PictureDomains | MaskBenchmark | DomainBenchmark
"""What gives a stream: ``benchmark(data, order_seed=None, tasks=None, keep=None)``."""

OWN = "own:FOLDER:TASKS"
"""How a folder of one's own is named, of pictures by class or with masks."""

BENCHMARKS: Registry[AnyBenchmark] = Registry("benchmark", "benchmarks")
for _entry in (*PICTURE_BENCHMARKS, *MASK_BENCHMARKS, *MASK_DOMAINS):
    BENCHMARKS.add(_entry.name, _entry)


def benchmark_named(name: str) -> AnyBenchmark:
    """The benchmark that a person names.

    Args:
        name: of an entry of ``BENCHMARKS``; that of its classes in another number of equal tasks, as in
            ``split-cifar100-20x5``; or ``own:FOLDER:TASKS``, a folder split into so many tasks: of pictures by class
            (``own_pictures``), or of pictures with masks and a part ``test`` (``own_masks``).

    Raises:
        UnknownName: there is none of this name; the message lists those that there are.
        ConfigError: an ``own:`` name without folder or number, or with more tasks than classes.
        DataError: the folder is not there, or not as it should be.

    >>> benchmark_named("split-cifar100-20x5").sizes == (5,) * 20
    True
    """
    if name.startswith("own:"):
        return _own(name)
    if name not in BENCHMARKS and (sizes := re.fullmatch("(.+)-([1-9][0-9]*)x([1-9][0-9]*)", name)):
        family, tasks = sizes[1], int(sizes[2])
        for entry in (BENCHMARKS[known] for known in BENCHMARKS):
            if isinstance(entry, Benchmark) and entry.family == family and tasks <= sum(entry.sizes):
                other = entry.split_into(tasks)
                if other.name == name:
                    return other
    return BENCHMARKS[name]


def _own(name: str) -> AnyBenchmark:
    folder, _, tasks = name.removeprefix("own:").rpartition(":")
    if not folder or not re.fullmatch("[0-9]{1,9}", tasks):
        raise ConfigError(f"benchmark {name!r}: write it as {OWN}, as in own:flowers:5")
    return (own_masks if is_mask_data(folder) else own_pictures)(folder, int(tasks))
