"""Streams of tasks with a test set, by name: those of labelled pictures, and the registry of all."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from sapwood.data.demo import ANIMALS, animal_parts
from sapwood.data.mask_benchmarks import MASK_BENCHMARKS, DomainBenchmark, MaskBenchmark
from sapwood.data.names import shown
from sapwood.data.pictures import Picture, Pictures
from sapwood.data.splits import class_order
from sapwood.data.streams import Round, Stream, data_folder
from sapwood.errors import ConfigError, DataError
from sapwood.registry import Registry

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_ANIMAL_TESTS = 200


Build = Callable[[Path | None, int | None], tuple[Pictures, Pictures]]


@dataclass(frozen=True)
class Benchmark:
    """A named split of labelled pictures into tasks of equally many classes; call it to get the stream."""

    kind: ClassVar[str] = "classification"

    name: str
    description: str
    where: str
    names: tuple[str, ...]
    classes_per_task: int
    load: Build

    def __call__(
        self,
        data: Path | None = None,
        *,
        order_seed: int | None = None,
        tasks: int | None = None,
        per_class: int | None = None,
    ) -> Stream:
        """The stream.

        Args:
            data: where the pictures lie; by default the environment variable ``SAPWOOD_DATA``.
            order_seed: of the order of the classes (``class_order``); None is the natural order.
            tasks: keep the first so many tasks; None keeps all.
            per_class: training pictures of each class, the first in the data's order; None takes all.

        Raises:
            DataError: the pictures are not there; the message names the files.
            ConfigError: more tasks or pictures than there are.
        """
        most = len(self.names) // self.classes_per_task
        if tasks is not None and not 1 <= tasks <= most:
            raise ConfigError(f"{self.name} has {most} tasks, got tasks={tasks}")
        train, test = self.load(data, per_class)
        ordered = [self.names[index] for index in class_order(len(self.names), order_seed)]
        step = self.classes_per_task
        groups = [tuple(ordered[first : first + step]) for first in range(0, len(ordered), step)][:tasks]
        rounds = tuple(Round("+".join(group), _in_order(train, group), _in_order(test, group)) for group in groups)
        return Stream(self.name, rounds, tuple(name for group in groups for name in group), order_seed)


def _in_order(pictures: Pictures, classes: Sequence[str]) -> Pictures:
    """The pictures of ``classes``, class by class, so that they are met in the order of learning."""
    return sum((pictures.of([name]) for name in classes), Pictures())


def _cifar10(data: Path | None, per_class: int | None) -> tuple[Pictures, Pictures]:
    folder = data_folder(data, ("cifar10",), ("train.npz", "test.npz"), "split-cifar10-5x2")
    names = _class_names(folder / "classes.json")
    train, test = (_read_npz(folder / f"{part}.npz", names) for part in ("train", "test"))
    return _first(train, names, per_class), test


def _animals(data: Path | None, per_class: int | None) -> tuple[Pictures, Pictures]:
    return animal_parts(per_class, _ANIMAL_TESTS)


def _class_names(file: Path) -> tuple[str, ...]:
    if not file.is_file():
        return CIFAR10
    try:
        names = tuple(json.loads(file.read_text("utf-8"))["classes"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f'{shown(file)}: is not JSON with a list "classes" ({shown(error)})') from error
    if sorted(names) != sorted(CIFAR10):
        raise DataError(f"{shown(file)}: its classes are not those of CIFAR-10")
    return names


def _read_npz(file: Path, names: Sequence[str]) -> Pictures:
    try:
        with np.load(file, allow_pickle=False) as content:
            images, labels = content["images"], content["labels"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{shown(file)}: is not an npz with images and labels ({shown(error)})") from error
    fits = images.ndim == 4 and images.shape[-1] == 3 and images.dtype == np.uint8 and labels.shape == images.shape[:1]
    if not fits or labels.dtype.kind not in "iu" or not 0 <= labels.min() <= labels.max() < len(names):
        raise DataError(f"{shown(file)}: expected images uint8 [N, H, W, 3] and labels integer [N] below {len(names)}")
    return Pictures(Picture(f"{file.name}[{index}]", images[index], names[label]) for index, label in enumerate(labels))


def _first(pictures: Pictures, names: Sequence[str], count: int | None) -> Pictures:
    if count is None:
        return pictures
    kept: list[int] = []
    for name in names:
        members = [index for index, label in enumerate(pictures.labels) if label == name]
        if not 1 <= count <= len(members):
            raise ConfigError(f"class {name!r} has {len(members)} training pictures, got per_class={count}")
        kept += members[:count]
    return pictures.subset(sorted(kept))


BENCHMARKS: Registry[Benchmark | MaskBenchmark | DomainBenchmark] = Registry("benchmark", "benchmarks")
_PICTURE_BENCHMARKS = (
    Benchmark(
        "split-cifar10-5x2",
        "CIFAR-10, 5 tasks of 2 classes, 32 × 32 pixels",
        "train.npz and test.npz (images uint8 [N, 32, 32, 3], labels) in DATA/cifar10 or DATA; --data or SAPWOOD_DATA",
        CIFAR10,
        2,
        _cifar10,
    ),
    Benchmark(
        "split-animals-5x2",
        "animal-mnist, 5 tasks of 2 classes, 28 × 28 pixels, 200 test pictures a class",
        "downloaded once into the cache (wheel animal-mnist 0.4, 2.6 MB)",
        ANIMALS,
        2,
        _animals,
    ),
)
for _entry in (*_PICTURE_BENCHMARKS, *MASK_BENCHMARKS):
    BENCHMARKS.add(_entry.name, _entry)
