"""Segmentation benchmarks: pictures with masks, split into tasks by class."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from sapwood.data import mask_layouts as layouts
from sapwood.data.label_sets import label_sets
from sapwood.data.legend import BACKGROUND
from sapwood.data.mask_domains import LARGE_THINGS
from sapwood.data.mask_layouts import Parts
from sapwood.data.masks import MaskedPictures, read_mask_split, read_masks
from sapwood.data.protocols import ProtocolName, annotated, check_request, read_partition, select, steps_of
from sapwood.data.sources import has_splits
from sapwood.data.splits import class_order, task_sizes
from sapwood.data.streams import MaskStream, Round, round_name
from sapwood.errors import ConfigError
from sapwood.settings import check


@dataclass(frozen=True)
class MaskBenchmark:
    """A named split of the classes of a data set with masks; call it to get the stream.

    Attributes:
        name: of the benchmark.
        family: the name without the sizes.
        description: one line.
        where: the files that it wants.
        classes: in natural order; all others are background throughout.
        sizes: how many classes each task adds.
        load: reads the data set.
        background: whether the benchmark's headline counts background in its mean IoU.
    """

    kind: ClassVar[str] = "segmentation"

    name: str
    family: str
    description: str
    where: str
    classes: tuple[str, ...]
    sizes: tuple[int, ...]
    load: Callable[[Path | None, str], Parts]
    background: Literal["include", "exclude"]

    def split_into(self, tasks: int) -> MaskBenchmark:
        """The same classes in ``tasks`` tasks of equally many (``task_sizes``); the name says so."""
        sizes = task_sizes(len(self.classes), tasks)
        return replace(self, name="-".join(map(str, (self.family, *sizes[:2]))), sizes=sizes)

    def __call__(
        self,
        data: Path | None = None,
        *,
        order_seed: int | None = None,
        tasks: int | None = None,
        keep: int | None = None,
        protocol: ProtocolName = "overlapped",
        every: int = 1,
        partition: Path | None = None,
    ) -> MaskStream:
        """The stream. Its first call reads every training mask, to see which classes it holds.

        Args:
            data: where the data set lies; by default the environment variable ``SAPWOOD_DATA``.
            order_seed: of the order of the classes (``class_order``); None is the natural order. Within a task they
                stay in their natural order.
            tasks: split the classes into so many tasks instead (``split_into``).
            keep: the first so many tasks; None keeps all. The classes of the rest stay classes of the future.
            protocol: which pictures a task shows, and which of their labels (``sapwood.data.protocols``).
            every: keep every n-th training picture.
            partition: folder of fixed lists of each task's pictures, which replace the protocol's choice of pictures
                (``read_partition``): MiB's "disjoint" results on ADE20K are on such lists.

        Raises:
            DataError: the data set is not there; the message names the files.
            ConfigError: more tasks than there are, an unknown protocol, a task without pictures.
        """
        if tasks is not None:
            other = self.split_into(tasks)
            return other(data, order_seed=order_seed, keep=keep, protocol=protocol, every=every, partition=partition)
        check_request(self.name, len(self.sizes), keep, protocol, every)
        steps = steps_of(self.sizes)
        order = class_order(len(self.classes), order_seed)
        groups = [[self.classes[index] for index in sorted(order[one - 1] for one in step)] for step in steps]
        names = [name for group in groups for name in group]

        train, test = self.load(data, self.name)
        legend = train.legend.keep(names, "background")
        pictures = train[::every]
        if partition is not None:
            lists = read_partition(partition, len(steps), len(train))
            shown = [[index // every for index in indices if index % every == 0] for indices in lists]
        else:
            channel = legend.lookup({name: number for number, name in enumerate(names, 1)})
            shown = select([channel[list(values)].tolist() for values in label_sets(pictures)], steps, protocol)

        measured = test.relabelled(test.legend.keep(names, "background"))
        rounds = []
        for number, (group, indices) in enumerate(zip(groups[:keep], shown, strict=False)):
            name = round_name(group)
            if not indices:
                raise ConfigError(
                    f"{self.name}: task {number + 1} ({name}) is left without training pictures by the protocol "
                    f"{protocol} with every={every}; take 'overlapped', or more pictures"
                )
            labelled = [names[one - 1] for one in annotated(steps, number, protocol)]
            part = pictures.subset(indices).relabelled(legend.keep(labelled, "background"))
            rounds.append(Round(name, part, measured))
        kept = tuple(name for group in groups[:keep] for name in group)
        return MaskStream(self.name, tuple(rounds), kept, order_seed, legend, self.background)


def split_masks(
    data: str | Path | MaskedPictures,
    sizes: Sequence[int],
    protocol: ProtocolName = "overlapped",
    test: str | Path | MaskedPictures | None = None,
    *,
    order_seed: int | None = None,
    every: int = 1,
) -> MaskStream:
    """Tasks from any folder of pictures and masks, its classes in the order of their values.

    Args:
        data: what ``read_masks`` reads.
        sizes: how many classes each task adds, ``(6, 5)``; all classes must be used.
        protocol: which pictures a task shows, and which of their labels.
        test: what is measured (of a folder in parts its part ``test``); None takes the part ``test`` of ``data``.
        order_seed: of the order of the classes; None keeps that of their values.
        every: keep every n-th training picture.

    Raises:
        DataError: the data are not as ``read_masks`` wants them, or have no test part.
        ConfigError: the sizes do not add up to the number of classes; and what a benchmark raises.
    """
    return own_masks(data, sizes, test)(order_seed=order_seed, protocol=protocol, every=every)


def own_masks(
    data: str | Path | MaskedPictures, sizes: Sequence[int] | int, test: str | Path | MaskedPictures | None = None
) -> MaskBenchmark:
    """The benchmark that ``split_masks`` runs; a number as ``sizes`` is how many equal tasks (``task_sizes``)."""
    train = read_masks(data)
    given = (len(train.classes),) if isinstance(sizes, int) else tuple(sizes)
    check(
        (
            sum(given) == len(train.classes),
            f"a split into {','.join(map(str, given))} needs {sum(given)} classes, the masks have "
            f"{len(train.classes)}: {', '.join(train.classes)}",
        )
    )
    measured = _test_part(data, test)
    family = "masks" if isinstance(data, MaskedPictures) else Path(data).resolve().name
    name = "-".join(map(str, (family, *given)))
    background: Literal["include", "exclude"] = "include" if BACKGROUND in train.legend.names.values() else "exclude"
    load = functools.partial(_given, Parts(train, measured))
    split = MaskBenchmark(name, family, "pictures with masks", family, train.classes, given, load, background)
    return split.split_into(sizes) if isinstance(sizes, int) else split


def _given(parts: Parts, data: Path | None, name: str) -> Parts:
    return parts


def _test_part(data: str | Path | MaskedPictures, test: str | Path | MaskedPictures | None) -> MaskedPictures:
    if test is not None:
        return read_mask_split(test, "test") if isinstance(test, str | Path) and has_splits(test) else read_masks(test)
    if isinstance(data, MaskedPictures):
        raise ConfigError("a split of pictures in memory needs test pictures; give test=")
    return read_mask_split(data, "test")


def _entries(
    data_set: str,
    splits: Sequence[str],
    title: str,
    where: str,
    classes: tuple[str, ...],
    load: Callable[[Path | None, str], Parts],
    background: Literal["include", "exclude"],
) -> Iterator[MaskBenchmark]:
    """The published splits of a data set; ``15-1`` begins with 15 classes and adds one at a time."""
    for split in splits:
        first, more = map(int, split.split("-"))
        sizes = (first, *[more] * ((len(classes) - first) // more))
        description = f"{title}, {len(sizes)} tasks: {first} classes, then {more} at a time"
        yield MaskBenchmark(f"{data_set}-{split}", data_set, description, where, classes, sizes, load, background)


_ROOT = "in DATA; --data or SAPWOOD_DATA"
MASK_BENCHMARKS: tuple[MaskBenchmark, ...] = (
    *_entries(
        "voc",
        ("19-1", "15-5", "15-1", "10-1", "5-3"),
        "PASCAL VOC 2012 with the masks of SBD",
        f"{layouts.VOC_FILES} {_ROOT}",
        layouts.VOC,
        layouts.voc,
        "include",
    ),
    *_entries(
        "ade",
        ("100-50", "50-50", "100-10", "25-25"),
        "ADE20K scene parsing",
        f"{layouts.ADE_FILES} {_ROOT}",
        layouts.ade_classes(),
        layouts.ade,
        "exclude",
    ),
    *_entries(
        "cityscapes",
        ("14-5", "14-1", "7-3", "10-1"),
        "Cityscapes, order of the train ids",
        f"{layouts.CITYSCAPES_FILES} {_ROOT}",
        layouts.CITYSCAPES,
        layouts.cityscapes,
        "exclude",
    ),
    *_entries(
        "camvid",
        ("4-3", "4-1"),
        "CamVid, large things only, the rest background",
        f"{layouts.CAMVID_FILES} {_ROOT}",
        LARGE_THINGS,
        layouts.camvid,
        "include",
    ),
    *_entries(
        "camvid",
        ("6-5",),
        "CamVid, for views beyond 16 x 12 patches",
        f"{layouts.CAMVID_FILES} {_ROOT}",
        layouts.CAMVID,
        layouts.camvid,
        "exclude",
    ),
)
