"""Benchmarks on their real data, and what is said when the data is not there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from sapwood.data.benchmarks import BENCHMARKS, CIFAR10
from sapwood.data.decode import content_sha256, decode
from sapwood.data.splits import class_order
from sapwood.errors import ConfigError, DataError, UnknownName

NAME = "split-cifar10-5x2"


def test_split_cifar10(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = BENCHMARKS[NAME](shared_data)
    assert stream.classes == CIFAR10
    assert [task.name for task in stream.rounds][:2] == ["airplane+automobile", "bird+cat"]
    for task in stream.rounds:
        assert task.train.classes == task.test.classes == tuple(task.name.split("+"))
        assert (len(task.train), len(task.test)) == (2000, 400)
    raw = np.load(shared_data / "cifar10" / "train.npz")
    first = np.flatnonzero(raw["labels"] == 3)[0]
    cat = stream.rounds[1].train.of(["cat"])[0]
    assert np.array_equal(decode(cat), raw["images"][first])
    monkeypatch.setenv("SAPWOOD_DATA", str(shared_data))
    assert BENCHMARKS[NAME]().sha256() == stream.sha256()
    assert BENCHMARKS[NAME](shared_data / "cifar10", tasks=5).sha256() == stream.sha256()


def test_order_number_of_tasks_and_of_pictures(shared_data: Path) -> None:
    stream = BENCHMARKS[NAME](shared_data, order_seed=1993, tasks=3, per_class=30)
    assert stream.classes == tuple(CIFAR10[index] for index in class_order(10, 1993)[:6])
    assert [(len(task.train), len(task.test)) for task in stream.rounds] == [(60, 400)] * 3
    natural = BENCHMARKS[NAME](shared_data, per_class=30)
    assert natural.sha256() != stream.sha256()
    sums = {content_sha256(one) for task in natural.rounds for one in task.train}
    assert {content_sha256(one) for task in stream.rounds for one in task.train} < sums
    for wrong in ({"tasks": 6}, {"tasks": 0}, {"per_class": 1001}, {"per_class": 0}):
        with pytest.raises(ConfigError):
            BENCHMARKS[NAME](shared_data, **wrong)


def test_missing_data_names_files_and_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAPWOOD_DATA", raising=False)
    with pytest.raises(DataError, match=r"needs train\.npz and test\.npz; .*--data or SAPWOOD_DATA"):
        BENCHMARKS[NAME]()
    with pytest.raises(DataError, match=re.escape(f"{tmp_path / 'cifar10'} nor in {tmp_path}")):
        BENCHMARKS[NAME](tmp_path)


def test_files_that_are_not_the_data(tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / f"{part}.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"train\.npz: is not an npz"):
        BENCHMARKS[NAME](tmp_path)
    for part in ("train", "test"):
        np.savez(tmp_path / f"{part}.npz", images=np.zeros((3, 32, 32), np.uint8), labels=np.arange(3))
    with pytest.raises(DataError, match=r"train\.npz: expected images uint8"):
        BENCHMARKS[NAME](tmp_path)
    np.savez(tmp_path / "train.npz", images=np.array([object()]), labels=np.arange(1))
    with pytest.raises(DataError, match=r"train\.npz: is not an npz"):
        BENCHMARKS[NAME](tmp_path)  # an array of objects would have to be unpickled
    (tmp_path / "classes.json").write_text('{"classes": ["cat"]}')
    with pytest.raises(DataError, match="not those of CIFAR-10"):
        BENCHMARKS[NAME](tmp_path)


def test_every_benchmark_describes_itself() -> None:
    assert NAME in BENCHMARKS
    assert all(BENCHMARKS[name].description and BENCHMARKS[name].where for name in BENCHMARKS)
    with pytest.raises(UnknownName, match=NAME):
        BENCHMARKS["split-cifar10"]


def test_what_is_measured_and_what_is_learned_jointly(shared_data: Path) -> None:
    stream = BENCHMARKS[NAME](shared_data, per_class=2, tasks=3)
    assert stream.kind == BENCHMARKS[NAME].kind == "classification"
    for last in range(3):
        for pictures, parts in (
            (stream.tests(last), [task.test for task in stream.rounds]),
            (stream.joint(last), [task.train for task in stream.rounds]),
        ):
            assert list(pictures) == [picture for part in parts[: last + 1] for picture in part]
