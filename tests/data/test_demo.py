"""The demo's pictures: the real wheel where it can be had."""

from __future__ import annotations

import gzip
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sapwood.data.benchmarks import BENCHMARKS
from sapwood.data.decode import content_sha256, decode
from sapwood.data.demo import ANIMALS, _array, animal_mnist, write_demo
from sapwood.data.pictures import Pictures
from sapwood.data.sources import read_data
from sapwood.errors import BackboneError, ConfigError, DataError


@pytest.fixture(scope="module")
def animals() -> Pictures:
    try:
        return animal_mnist()
    except BackboneError as error:
        pytest.skip(f"animal-mnist cannot be had: {error}")


def test_duplicates_are_gone(animals: Pictures) -> None:
    assert animals.classes == ANIMALS
    counts = Counter(animals.labels)
    assert (len(animals), counts["Bird"], counts["Zebra"]) == (10_000 - 284, 1000 - 188, 1000)
    assert len({content_sha256(one) for one in animals}) == len(animals)
    assert decode(animals[0]).shape == (28, 28, 3)


def test_only_zebras_have_grey_stripes(animals: Pictures) -> None:
    grey = Counter(
        one.label for one in animals for pixels in [decode(one)] if ((pixels > 60) & (pixels < 190)).mean() > 0.2
    )
    assert grey.most_common(1)[0][0] == "Zebra"


def test_write_demo(animals: Pictures, tmp_path: Path) -> None:
    folders = write_demo(tmp_path / "demo", 6, 3)
    parts = [read_data(folder) for folder in (*folders.rounds, folders.test)]
    assert [part.classes for part in parts] == [ANIMALS[:5], ANIMALS[5:], ANIMALS]
    assert [set(Counter(part.labels).values()) for part in parts] == [{6}, {6}, {3}]
    pixels = [decode(one).tobytes() for part in parts for one in part]
    assert len(set(pixels)) == len(pixels) == 90
    before = {path: path.read_bytes() for path in (tmp_path / "demo").rglob("*.png")}
    write_demo(tmp_path / "demo", 6, 3)
    assert before == {path: path.read_bytes() for path in (tmp_path / "demo").rglob("*.png")}
    larger = write_demo(tmp_path / "larger", 9, 3)
    assert sorted(os.listdir(larger.test / "Cat")) == sorted(os.listdir(folders.test / "Cat"))
    with pytest.raises(DataError, match="holds other files already"):
        write_demo(tmp_path / "larger", 6, 3)


def test_write_demo_with_own_rounds(animals: Pictures, tmp_path: Path) -> None:
    folders = write_demo(tmp_path, 1, 1, rounds=[["Cat"], ["Bear", "Dog"]])
    assert read_data(folders.rounds[1]).classes == ("Bear", "Dog")
    assert read_data(folders.test).classes == ("Bear", "Cat", "Dog")
    with pytest.raises(ConfigError, match="no animal 'Unicorn'; known: Bear"):
        write_demo(tmp_path, 1, 1, rounds=[["Unicorn"]])
    with pytest.raises(ConfigError, match="812 pictures of Bird"):
        write_demo(tmp_path, 800, 50)


def test_the_animal_benchmark(animals: Pictures) -> None:
    stream = BENCHMARKS["split-animals-5x2"](per_class=5, order_seed=0)
    assert [(len(task.train), len(task.test)) for task in stream.rounds] == [(10, 400)] * 5
    assert sorted(stream.classes) == sorted(ANIMALS)
    everything = [content_sha256(one) for task in stream.rounds for one in (*task.train, *task.test)]
    assert len(set(everything)) == len(everything)


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("exit 1",)


def test_the_unpickler_admits_arrays_alone() -> None:
    with pytest.raises(DataError, match=r"system is not admitted"):
        _array(gzip.compress(pickle.dumps(_Evil())))
    with pytest.raises(DataError, match="is not admitted"):
        _array(gzip.compress(pickle.dumps(np.array([object()], dtype=object))))
