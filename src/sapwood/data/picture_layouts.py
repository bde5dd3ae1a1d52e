"""How the data sets of the classification benchmarks lie on disk, as their authors ship them or as class folders."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sapwood.data.demo import ANIMALS, animal_parts
from sapwood.data.names import check_class_names, class_name, shown
from sapwood.data.pictures import Picture, Pictures
from sapwood.data.sources import read_data, read_split, split_names
from sapwood.data.splits import validation_split
from sapwood.data.streams import data_folder, data_layout
from sapwood.errors import DataError

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TEST_SHARE = 0.2
"""Of each class, where a data set comes without a test part."""
SPLIT_SEED = 0
"""Of that choice."""

CIFAR10_FILES = "train.npz and test.npz (images uint8 [N, 32, 32, 3], labels) in DATA/cifar10 or DATA"
CIFAR100_FILES = (
    "cifar-100-binary with train.bin, test.bin and fine_label_names.txt, or cifar100 with the class folders "
    "train/<class> and test/<class>, in DATA"
)
IMAGENET_R_FILES = (
    "imagenet-r with train/<wnid> and test/<wnid>, or with <wnid> alone (then 20 % of each class are for testing), in "
    "DATA"
)
CUB_FILES = (
    "CUB_200_2011 with images.txt, image_class_labels.txt, train_test_split.txt, classes.txt and images, or cub with "
    "train/<class> and test/<class>, in DATA"
)
CARS_FILES = "cars with the class folders train/<class> and test/<class>, in DATA"

_ANIMAL_TESTS = 200
_CIFAR_SIDE = 32
_PARTS = ("train", "test")


class ClassParts(NamedTuple):
    """Training and test pictures of a data set, its classes in natural order, and how the two were divided."""

    train: Pictures
    test: Pictures
    classes: tuple[str, ...]
    split: str = ""


Load = Callable[[Path | None, str], ClassParts]
"""Reads a data set: where data sets lie, and the benchmark's name for messages."""


def cifar10(data: Path | None, name: str) -> ClassParts:
    """CIFAR-10 as two npz files; ``classes.json`` beside them may order the labels."""
    folder = data_folder(data, ("cifar10",), ("train.npz", "test.npz"), name)
    names = _cifar10_names(folder / "classes.json")
    train, test = (_read_npz(folder / f"{part}.npz", names) for part in _PARTS)
    return ClassParts(train, test, CIFAR10)


def animals(data: Path | None, name: str) -> ClassParts:
    """animal-mnist, downloaded once; 200 test pictures of each animal."""
    return ClassParts(*animal_parts(None, _ANIMAL_TESTS), ANIMALS)


def cifar100(data: Path | None, name: str) -> ClassParts:
    """CIFAR-100 (50,000 and 10,000 pictures) from its binary version, or from class folders."""
    layouts = (("train.bin", "test.bin", "fine_label_names.txt"), _PARTS)
    folder, found = data_layout(data, ("cifar-100-binary", "cifar100", "cifar-100"), layouts, name)
    if found == 1:
        return _from_class_folders(folder, name, 100)
    names = tuple(_text(folder / "fine_label_names.txt").split())
    if len(set(names)) != 100:
        raise DataError(
            f"{shown(folder / 'fine_label_names.txt')}: expected 100 different names, got {len(set(names))}"
        )
    train, test = (_read_cifar_binary(folder / f"{part}.bin", names) for part in _PARTS)
    return ClassParts(train, test, names)


def imagenet_r(data: Path | None, name: str) -> ClassParts:
    """ImageNet-R (30,000 pictures of 200 classes). It has no official division: ``split`` bears the list's hash."""
    folder, found = data_layout(data, ("imagenet-r", "imagenet_r", "ImageNet-R"), (_PARTS, ("n0*",)), name)
    if found == 0:
        return _from_class_folders(folder, name, 200)
    return _checked(_cut(read_data(folder, follow_splits=False), folder), folder, name, 200)


def cub(data: Path | None, name: str) -> ClassParts:
    """CUB-200-2011: the official 5,994 and 5,794 pictures, or another division in class folders."""
    lists = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt", "images")
    folder, found = data_layout(data, ("CUB_200_2011", "cub", "cub200", "CUB200"), (lists, _PARTS), name)
    if found == 1:
        return _from_class_folders(folder, name, 200)
    files, labels, parts, names = (_numbered(folder / file) for file in lists[:4])
    if files.keys() != labels.keys() or files.keys() != parts.keys():
        raise DataError(f"{name}: the lists in {shown(folder)} are not of the same pictures; unpack the data set again")
    classes = {number: class_name(label, str(folder / "classes.txt")) for number, label in names.items()}
    check_class_names(classes.values(), str(folder / "classes.txt"))
    pictures: dict[str, list[Picture]] = {"1": [], "0": []}
    for number, file in files.items():
        if labels[number] not in classes or parts[number] not in pictures:
            raise DataError(
                f"{name}: picture {shown(number)} of {shown(folder)} has the class {shown(labels[number])} and the "
                f"part {shown(parts[number])}; expected a number of classes.txt, and 1 for training or 0 for testing"
            )
        path = folder / "images" / file
        pictures[parts[number]].append(Picture(str(path), path, classes[labels[number]]))
    train, test = (present(pictures[part], name) for part in ("1", "0"))
    split = f"train_test_split.txt, {list_sha256(train, test, folder / 'images')}"
    return _checked(ClassParts(train, test, tuple(classes.values()), split), folder, name, 200)


def cars(data: Path | None, name: str) -> ClassParts:
    """Stanford Cars (8,144 and 8,041 pictures of 196 classes) in class folders."""
    folder = data_folder(data, ("cars", "cars196", "stanford_cars"), _PARTS, name)
    return _from_class_folders(folder, name, 196)


def own(folder: str | Path) -> ClassParts:
    """Any labelled pictures that ``read_data`` reads; without a test part, 20 % of each class are for testing.

    Raises:
        DataError: what ``read_data`` raises; a test class that is never learned, a class without test pictures.
    """
    path = Path(folder).expanduser()
    train = read_data(path)
    if "test" not in split_names(path):
        return _cut(train, path)
    return _both(train, read_split(path, "test"), path)


def present(pictures: Iterable[Picture], name: str) -> Pictures:
    """The pictures, if all their files are there.

    Raises:
        DataError: the first that is not, and how many more.
    """
    found = Pictures(pictures)
    missing = [picture for picture in found if isinstance(picture.source, Path) and not picture.source.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(f"{name}: {shown(missing[0].name)}{more}: no such file; unpack the whole data set")
    return found


def list_sha256(train: Pictures, test: Pictures, folder: Path) -> str:
    """Tells one division of the same files from another: the hash of both lists, sorted, relative to ``folder``."""
    lines = []
    for part, pictures in zip(_PARTS, (train, test), strict=True):
        for one in pictures:
            inside = one.name
            if isinstance(one.source, Path):
                inside = Path(os.path.relpath(one.source, folder)).as_posix().removeprefix(f"{part}/")
            lines.append(f"{part} {one.label} {inside}\n")
    return f"file list sha256 {hashlib.sha256(''.join(sorted(lines)).encode()).hexdigest()}"


def _from_class_folders(folder: Path, name: str, count: int) -> ClassParts:
    train, test = (read_data(folder / part, follow_splits=False) for part in _PARTS)
    return _checked(_both(train, test, folder), folder, name, count)


def _both(train: Pictures, test: Pictures, folder: Path) -> ClassParts:
    for first, second, fault in ((test, train, "are only tested"), (train, test, "have no test pictures")):
        if strange := sorted(set(first.classes).difference(second.classes)):
            named = ", ".join(strange[:3]) + (f" and {len(strange) - 3} more" if len(strange) > 3 else "")
            raise DataError(f"{shown(folder)}: classes that {fault}: {named}; train and test need the same classes")
    return ClassParts(train, test, train.classes, f"parts train and test, {list_sha256(train, test, folder)}")


def _cut(pictures: Pictures, folder: Path) -> ClassParts:
    kept, held = validation_split(pictures.labels, TEST_SHARE, SPLIT_SEED, smallest=2)
    train, test = pictures.subset(kept), pictures.subset(held)
    if alone := [label for label in pictures.classes if label not in set(test.labels)]:
        raise DataError(f"{shown(folder)}: class {alone[0]!r} has one picture; two are needed, one of them for testing")
    how = f"{TEST_SHARE:.0%} of each class for testing, seed {SPLIT_SEED}"
    base = folder if folder.is_dir() else folder.parent  # of a CSV
    return ClassParts(train, test, pictures.classes, f"{how}, {list_sha256(train, test, base)}")


def _checked(parts: ClassParts, folder: Path, name: str, count: int) -> ClassParts:
    if len(parts.classes) != count:
        raise DataError(f"{name}: {shown(folder)} holds {len(parts.classes)} classes, expected {count}")
    return parts


def _cifar10_names(file: Path) -> tuple[str, ...]:
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


def _read_cifar_binary(file: Path, names: Sequence[str]) -> Pictures:
    """Records of a coarse label, a fine label and the planes of red, green and blue, row by row."""
    size = 2 + 3 * _CIFAR_SIDE**2
    content = np.fromfile(file, np.uint8)
    if not len(content) or len(content) % size or content[1::size].max() >= len(names):
        raise DataError(f"{shown(file)}: is not made of records of {size} bytes with fine labels below {len(names)}")
    records = content.reshape(-1, size)
    images = np.ascontiguousarray(records[:, 2:].reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE).transpose(0, 2, 3, 1))
    labels = records[:, 1].tolist()
    return Pictures(Picture(f"{file.name}[{index}]", images[index], names[label]) for index, label in enumerate(labels))


def _numbered(file: Path) -> dict[str, str]:
    """Lines of a number and a text."""
    found = dict(line.split(maxsplit=1) for line in _text(file).splitlines() if len(line.split()) > 1)
    return {number: text.strip() for number, text in found.items()}


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{shown(file)}: cannot be read ({shown(error)})") from error
