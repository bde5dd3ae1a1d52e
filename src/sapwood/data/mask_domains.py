"""Segmentation benchmarks whose tasks are conditions: the same classes at another time of day, in other weather."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from sapwood.data import mask_layouts as layouts
from sapwood.data.mask_layouts import Parts
from sapwood.data.protocols import ProtocolName, check_request
from sapwood.data.splits import class_order
from sapwood.data.streams import MaskStream, Round
from sapwood.settings import check

# What 16 x 12 patches can show of CamVid, the classes of the first task of the class splits first.
LARGE_THINGS = ("Sky", "Building", "Road", "Fence", "Pavement", "Tree", "Car")


@dataclass(frozen=True)
class DomainBenchmark:
    """Conditions one after another; every task labels the same classes and has test pictures of its own.

    As nothing is of the future, the protocols do not differ.

    Attributes:
        name: of the benchmark.
        description: one line.
        where: the files that it wants.
        load: reads the data set, condition by condition in natural order.
        background: whether the headline counts background in its mean IoU.
        always_first: conditions that an order of the others leaves in front.
    """

    kind: ClassVar[str] = "segmentation"

    name: str
    description: str
    where: str
    load: Callable[[Path | None, str], Mapping[str, Parts]]
    background: Literal["include", "exclude"]
    always_first: tuple[str, ...] = ()

    def __call__(
        self,
        data: Path | None = None,
        *,
        order_seed: int | None = None,
        tasks: int | None = None,
        keep: int | None = None,
        protocol: ProtocolName = "overlapped",
        every: int = 1,
    ) -> MaskStream:
        """The stream; arguments as for ``MaskBenchmark``, ``order_seed`` being of the order of the conditions."""
        check(
            (
                tasks is None,
                f"{self.name}: its tasks are conditions, which cannot be split into {tasks}; leave --tasks out",
            )
        )
        conditions = self.load(data, self.name)
        first = [name for name in conditions if name in self.always_first]
        others = [name for name in conditions if name not in self.always_first]
        ordered = first + [others[index] for index in class_order(len(others), order_seed)]
        check_request(self.name, len(ordered), keep, protocol, every)
        parts = [(name, conditions[name]) for name in ordered]
        rounds = tuple(Round(name, part.train[::every], part.test) for name, part in parts)[:keep]
        legend = parts[0][1].train.legend
        return MaskStream(self.name, rounds, legend.classes, order_seed, legend, self.background, domains=True)


def weathers(data: Path | None, name: str) -> Mapping[str, Parts]:
    """ACDC's conditions, after Cityscapes if that lies there."""
    found = layouts.acdc(data, name)
    return {"cityscapes": layouts.cityscapes(data, name), **found} if layouts.has_cityscapes(data) else found


def times_of_day(data: Path | None, name: str) -> Mapping[str, Parts]:
    """CamVid's drives by day (305 and 171 frames), then the one at dusk (62 and 62), large things only.

    By day training and test frames are of different drives; at dusk they are the two halves of one.
    """
    train, test = layouts.camvid(data, name)
    legend = train.legend.keep(LARGE_THINGS, "background")

    def part(pictures: layouts.MaskedPictures, dusk: bool) -> layouts.MaskedPictures:
        kept = [index for index, picture in enumerate(pictures) if _is_dusk(picture.name) == dusk]
        return pictures.subset(kept).relabelled(legend)

    return {time: Parts(part(train, time == "dusk"), part(test, time == "dusk")) for time in ("day", "dusk")}


def _is_dusk(name: str) -> bool:
    return Path(name).name.startswith("0001TP")


MASK_DOMAINS = (
    DomainBenchmark(
        "acdc",
        "ACDC, the 19 classes of Cityscapes in fog, at night, in rain and in snow; after Cityscapes if that lies there",
        f"{layouts.ACDC_FILES} in DATA; --data or SAPWOOD_DATA",
        weathers,
        "exclude",
        ("cityscapes",),
    ),
    DomainBenchmark(
        "camvid-domains",
        "CamVid by day, then at dusk: the same 7 large things, the rest background",
        f"{layouts.CAMVID_FILES} in DATA; --data or SAPWOOD_DATA",
        times_of_day,
        "include",
    ),
)
