"""Classification benchmarks: labelled pictures, split into tasks by class or by domain."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from sapwood.data import domain_layouts as domains
from sapwood.data import picture_layouts as layouts
from sapwood.data.corruptions import CORRUPTIONS
from sapwood.data.domain_layouts import LoadDomains
from sapwood.data.picture_layouts import ClassParts, Load
from sapwood.data.pictures import Pictures
from sapwood.data.splits import class_order, task_sizes
from sapwood.data.streams import Round, Stream, round_name
from sapwood.errors import ConfigError
from sapwood.settings import check


@dataclass(frozen=True)
class Benchmark:
    """A named split of labelled pictures into tasks with classes of their own; call it to get the stream.

    Attributes:
        name: of the benchmark.
        family: the name without the sizes.
        description: one line.
        where: the files that it wants.
        sizes: how many classes each task adds.
        load: reads the data set.
    """

    kind: ClassVar[str] = "classification"

    name: str
    family: str
    description: str
    where: str
    sizes: tuple[int, ...]
    load: Load

    def split_into(self, tasks: int) -> Benchmark:
        """The same classes in ``tasks`` tasks of equally many (``task_sizes``); the name says so.

        As many tasks as there are already is this very split, whatever its sizes.

        Raises:
            ConfigError: no task, or more tasks than classes.

        >>> PICTURE_BENCHMARKS[0].name, PICTURE_BENCHMARKS[0].split_into(10).name
        ('split-cifar10-5x2', 'split-cifar10-10x1')
        """
        if tasks == len(self.sizes):
            return self
        try:
            sizes = task_sizes(sum(self.sizes), tasks)
        except ConfigError as error:
            raise ConfigError(f"{self.family}: {error}") from None
        description = f"{self.description.split(',')[0]}, {tasks} tasks"
        return replace(self, name=f"{self.family}-{tasks}x{sizes[0]}", description=description, sizes=sizes)

    def __call__(
        self,
        data: Path | None = None,
        *,
        order_seed: int | None = None,
        tasks: int | None = None,
        keep: int | None = None,
        per_class: int | None = None,
    ) -> Stream:
        """The stream.

        Args:
            data: where the pictures lie; by default the environment variable ``SAPWOOD_DATA``.
            order_seed: of the order of the classes (``class_order``); None is the natural order.
            tasks: split the classes into so many tasks instead (``split_into``).
            keep: the first so many tasks; None keeps all.
            per_class: training pictures of each class, the first in the data's order; None takes all.

        Raises:
            DataError: the pictures are not there; the message names the files.
            ConfigError: more tasks or pictures than there are.
        """
        if tasks is not None:
            return self.split_into(tasks)(data, order_seed=order_seed, keep=keep, per_class=per_class)
        _check_keep(self.name, len(self.sizes), keep)
        parts = self.load(data, self.name)
        ordered = [parts.classes[index] for index in class_order(len(parts.classes), order_seed)]
        groups = [tuple(ordered[sum(self.sizes[:at]) :][:size]) for at, size in enumerate(self.sizes)][:keep]
        train = _first(parts.train, parts.classes, per_class)
        rounds = tuple(
            Round(round_name(group), _by_class(train, group), _by_class(parts.test, group)) for group in groups
        )
        classes = tuple(name for group in groups for name in group)
        return Stream(self.name, rounds, classes, order_seed, split=parts.split)


@dataclass(frozen=True)
class PictureDomains:
    """The same classes in one domain after another; every round has all classes and test pictures of its own.

    Attributes:
        name: of the benchmark.
        description: one line.
        where: the files that it wants.
        domains: in natural order.
        load: reads the data set.
    """

    kind: ClassVar[str] = "classification"

    name: str
    description: str
    where: str
    domains: tuple[str, ...]
    load: LoadDomains

    def __call__(
        self,
        data: Path | None = None,
        *,
        order_seed: int | None = None,
        tasks: int | None = None,
        keep: int | None = None,
        per_class: int | None = None,
    ) -> Stream:
        """The stream; arguments as for ``Benchmark``.

        Args:
            data: where the pictures lie.
            order_seed: of the order of the domains (``class_order``); None is the natural order.
            tasks: refused, unless it is the number of domains.
            keep: the first so many domains; None keeps all.
            per_class: training pictures of each class in each domain; None takes all.
        """
        count = len(self.domains)
        fault = f"{self.name}: its tasks are its {count} domains, which cannot be split into {tasks}; leave --tasks out"
        check((tasks in (None, count), fault))
        _check_keep(self.name, count, keep)
        found = self.load(data, self.name)
        order = [self.domains[index] for index in class_order(count, order_seed)][:keep]
        rounds = []
        for domain in order:
            parts = found[domain]
            train = _first(parts.train, parts.train.classes, per_class)
            rounds.append(Round(domain, _by_class(train, parts.classes), _by_class(parts.test, parts.classes)))
        return Stream(self.name, tuple(rounds), parts.classes, order_seed, split=parts.split, domains=True)


def own_pictures(folder: str | Path, tasks: int) -> Benchmark:
    """A benchmark of any labelled pictures (``picture_layouts.own``), named after their folder.

    Args:
        folder: what ``read_data`` reads; its part ``test`` is tested on, else 20 % of each class.
        tasks: how many, of equally many classes (``task_sizes``).

    Raises:
        DataError: the pictures are not as ``read_data`` wants them.
        ConfigError: no task, or more tasks than classes.
    """
    parts = layouts.own(folder)
    path = Path(folder).expanduser().resolve()
    family = path.stem if path.is_file() else path.name
    whole = Benchmark(
        f"{family}-1x{len(parts.classes)}",
        family,
        "pictures of one's own",
        family,
        (len(parts.classes),),
        functools.partial(_given, parts),
    )
    return whole.split_into(tasks)


def _given(parts: ClassParts, data: Path | None, name: str) -> ClassParts:
    return parts


def _check_keep(name: str, most: int, keep: int | None) -> None:
    check((keep is None or 1 <= keep <= most, f"{name} has {most} tasks, got keep={keep}"))


def _members(pictures: Pictures) -> dict[str | None, list[int]]:
    found: dict[str | None, list[int]] = {}
    for index, label in enumerate(pictures.labels):
        found.setdefault(label, []).append(index)
    return found


def _by_class(pictures: Pictures, classes: Sequence[str]) -> Pictures:
    """The pictures of ``classes``, class by class, so that they are met in the order of learning."""
    members = _members(pictures)
    return pictures.subset(index for name in classes for index in members.get(name, ()))


def _first(pictures: Pictures, names: Sequence[str], count: int | None) -> Pictures:
    if count is None:
        return pictures
    members = _members(pictures)
    for name in names:
        there = len(members.get(name, ()))
        if not 1 <= count <= there:
            raise ConfigError(f"class {name!r} has {there} training pictures, got per_class={count}")
    return pictures.subset(sorted(index for name in names for index in members[name][:count]))


_ROOT = "; --data or SAPWOOD_DATA"
PICTURE_BENCHMARKS: tuple[Benchmark | PictureDomains, ...] = (
    Benchmark(
        "split-cifar10-5x2",
        "split-cifar10",
        "CIFAR-10, 5 tasks of 2 classes, 32 × 32 pixels",
        layouts.CIFAR10_FILES + _ROOT,
        (2,) * 5,
        layouts.cifar10,
    ),
    Benchmark(
        "split-animals-5x2",
        "split-animals",
        "animal-mnist, 5 tasks of 2 classes, 28 × 28 pixels, 200 test pictures a class",
        "downloaded once into the cache (wheel animal-mnist 0.4, 2.6 MB)",
        (2,) * 5,
        layouts.animals,
    ),
    Benchmark(
        "split-cifar100-10x10",
        "split-cifar100",
        "CIFAR-100, 10 tasks of 10 classes, 32 × 32 pixels",
        layouts.CIFAR100_FILES + _ROOT,
        (10,) * 10,
        layouts.cifar100,
    ),
    Benchmark(
        "imagenet-r-10x20",
        "imagenet-r",
        "ImageNet-R, 10 tasks of 20 classes",
        layouts.IMAGENET_R_FILES + _ROOT,
        (20,) * 10,
        layouts.imagenet_r,
    ),
    Benchmark(
        "cub-10x20",
        "cub",
        "CUB-200-2011, 10 tasks of 20 classes of birds",
        layouts.CUB_FILES + _ROOT,
        (20,) * 10,
        layouts.cub,
    ),
    Benchmark(
        "cars-10",
        "cars",
        "Stanford Cars, 10 tasks: 16 classes, then 20 at a time",
        layouts.CARS_FILES + _ROOT,
        (16, *(20,) * 9),
        layouts.cars,
    ),
    PictureDomains(
        "domainnet",
        f"DomainNet, 345 classes in {', '.join(domains.DOMAINNET)}, one after another",
        domains.DOMAINNET_FILES + _ROOT,
        domains.DOMAINNET,
        domains.domainnet,
    ),
    PictureDomains(
        "cifar10-domains",
        f"CIFAR-10, the same 10 classes under corruptions one after another: {', '.join(CORRUPTIONS)}",
        layouts.CIFAR10_FILES + _ROOT,
        tuple(CORRUPTIONS),
        domains.cifar10_domains,
    ),
)
