"""Data sets whose domains share their classes: DomainNet, and CIFAR-10 under corruptions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from sapwood.data.corruptions import CORRUPTIONS
from sapwood.data.names import check_class_names, class_name, shown
from sapwood.data.picture_layouts import ClassParts, cifar10, present
from sapwood.data.pictures import Picture, Pictures
from sapwood.data.streams import data_folder
from sapwood.errors import DataError

DOMAINNET = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
DOMAINNET_FILES = "domainnet with <domain>_train.txt, <domain>_test.txt and <domain>/<class>/* of six domains, in DATA"

_DOMAINNET_CLASSES = 345

LoadDomains = Callable[[Path | None, str], Mapping[str, ClassParts]]
"""Reads the domains in their order, all with the same ``classes``."""


def domainnet(data: Path | None, name: str) -> Mapping[str, ClassParts]:
    """DomainNet (345 classes; about 410,000 training and 176,000 test pictures) by its authors' lists."""
    wanted = [f"{domain}_{part}.txt" for domain in DOMAINNET for part in ("train", "test")]
    folder = data_folder(data, ("domainnet", "DomainNet"), wanted, name)
    classes: dict[int, str] = {}
    lists = {file: _listed(folder / file, folder, classes) for file in wanted}
    if sorted(classes) != list(range(_DOMAINNET_CLASSES)):
        raise DataError(f"{name}: the lists in {shown(folder)} name {len(classes)} classes, expected 345, 0 to 344")
    names = tuple(classes[number] for number in sorted(classes))
    check_class_names(names, str(folder))
    return {
        domain: ClassParts(
            present(lists[f"{domain}_train.txt"], name), present(lists[f"{domain}_test.txt"], name), names
        )
        for domain in DOMAINNET
    }


def cifar10_domains(data: Path | None, name: str) -> Mapping[str, ClassParts]:
    """CIFAR-10 dealt out to the corruptions: the n-th picture of a class belongs to the (n mod 5)-th domain.

    So no picture, be it for training or for testing, is in two domains.
    """
    train, test, classes, _ = cifar10(data, name)
    return {
        domain: ClassParts(_corrupted(train, number, domain), _corrupted(test, number, domain), classes)
        for number, domain in enumerate(CORRUPTIONS)
    }


def _corrupted(pictures: Pictures, number: int, domain: str) -> Pictures:
    met: dict[str | None, int] = {}
    found = []
    for one in pictures:
        place = met[one.label] = met.get(one.label, -1) + 1
        if place % len(CORRUPTIONS) == number:
            assert isinstance(one.source, np.ndarray)
            found.append(Picture(f"{one.name} {domain}", CORRUPTIONS[domain](one.source), one.label))
    return Pictures(found)


def _listed(file: Path, folder: Path, classes: dict[int, str]) -> list[Picture]:
    """Pictures of a list with lines ``<domain>/<class>/<file> <number>``; ``classes`` learns what the numbers mean."""
    pictures = []
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{shown(file)}: cannot be read ({shown(error)})") from error
    for row, line in enumerate(lines, 1):
        if not line.strip():
            continue
        path, _, number = line.strip().rpartition(" ")
        if not number.isdecimal() or path.count("/") < 2:
            raise DataError(
                f"{shown(file)}, line {row}: expected <domain>/<class>/<file> <number>, got {shown(line)!r}"
            )
        label = class_name(path.split("/")[-2], str(file))
        if classes.setdefault(int(number), label) != label:
            raise DataError(
                f"{shown(file)}, line {row}: class {number} is {label!r} here and {classes[int(number)]!r} before"
            )
        pictures.append(Picture(str(folder / path), folder / path, label))
    return pictures
