"""Benchmarks on their real data, and what is said when the data is not there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sapwood.data.benchmarks import BENCHMARKS, benchmark_named
from sapwood.data.decode import content_sha256, decode
from sapwood.data.picture_benchmarks import PICTURE_BENCHMARKS, Benchmark, PictureDomains
from sapwood.data.picture_layouts import CIFAR10
from sapwood.data.pictures import Pictures
from sapwood.data.splits import class_order
from sapwood.errors import ConfigError, DataError, UnknownName

NAME = "split-cifar10-5x2"
Folders = Callable[..., Path]


def test_split_cifar10(shared_data: Path) -> None:
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


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A folder with a CIFAR-10 of seven training and five test pictures a class, the classes in turn."""
    random = np.random.default_rng(0)
    (tmp_path / "few" / "cifar10").mkdir(parents=True)
    for part, count in (("train", 70), ("test", 50)):
        images = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        np.savez(tmp_path / "few" / "cifar10" / f"{part}.npz", images=images, labels=np.arange(count) % 10)
    return tmp_path / "few"


def test_order_number_of_tasks_and_of_pictures(few: Path) -> None:
    stream = BENCHMARKS[NAME](few, order_seed=1993, keep=3, per_class=3)
    assert stream.classes == tuple(CIFAR10[index] for index in class_order(10, 1993)[:6])
    assert [(len(task.train), len(task.test)) for task in stream.rounds] == [(6, 10)] * 3
    first = stream.rounds[0].train
    assert [one.name for one in first] == [
        f"train.npz[{CIFAR10.index(str(one.label)) + 10 * (at % 3)}]" for at, one in enumerate(first)
    ]
    natural = BENCHMARKS[NAME](few, per_class=3)
    assert natural.sha256() != stream.sha256()
    sums = {content_sha256(one) for task in natural.rounds for one in task.train}
    assert {content_sha256(one) for task in stream.rounds for one in task.train} < sums
    for wrong, said in (
        ({"keep": 6}, "has 5 tasks, got keep=6"),
        ({"keep": 0}, "has 5 tasks, got keep=0"),
        ({"tasks": 11}, "split-cifar10: 10 classes make 1 to 10 tasks, got tasks=11"),
        ({"tasks": 0}, "1 to 10 tasks, got tasks=0"),
        ({"per_class": 8}, "class 'airplane' has 7 training pictures, got per_class=8"),
        ({"per_class": 0}, "got per_class=0"),
    ):
        with pytest.raises(ConfigError, match=said):
            BENCHMARKS[NAME](few, **wrong)


def test_where_the_pictures_lie(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = BENCHMARKS[NAME](few)
    assert BENCHMARKS[NAME](few / "cifar10", keep=5).sha256() == stream.sha256()
    monkeypatch.setenv("SAPWOOD_DATA", str(few))
    assert BENCHMARKS[NAME]().sha256() == stream.sha256()


def test_another_number_of_tasks(few: Path) -> None:
    single = BENCHMARKS[NAME](few, order_seed=7, tasks=10)
    assert single.name == "split-cifar10-10x1"
    assert [task.name for task in single.rounds] == [CIFAR10[index] for index in class_order(10, 7)]
    assert [(len(task.train), len(task.test)) for task in single.rounds] == [(7, 5)] * 10
    uneven = BENCHMARKS[NAME](few, tasks=4, keep=3, per_class=5)
    assert (uneven.name, [len(task.train.classes) for task in uneven.rounds]) == ("split-cifar10-4x3", [3, 3, 3])
    assert [len(task.train) for task in uneven.rounds] == [15, 15, 15]
    assert BENCHMARKS[NAME](few, tasks=4).rounds[-1].name == "truck"
    same = BENCHMARKS[NAME](few, tasks=5)
    assert (same.name, same.sha256()) == (NAME, BENCHMARKS[NAME](few).sha256())
    assert BENCHMARKS[NAME](few, tasks=1).rounds[0].name == "airplane+automobile+8 more"


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


def test_what_is_measured_and_what_is_learned_jointly(few: Path) -> None:
    stream = BENCHMARKS[NAME](few, keep=3)
    assert stream.kind == BENCHMARKS[NAME].kind == "classification"
    for last in range(3):
        for pictures, parts in (
            (stream.tests(last), [task.test for task in stream.rounds]),
            (stream.joint(last), [task.train for task in stream.rounds]),
        ):
            assert list(pictures) == [picture for part in parts[: last + 1] for picture in part]


def test_cifar10_under_corruptions(shared_data: Path) -> None:
    stream = BENCHMARKS["cifar10-domains"](shared_data)
    assert (stream.kind, stream.classes, stream.domains) == ("classification", CIFAR10, True)
    assert [task.name for task in stream.rounds] == ["clean", "blur", "noise", "contrast", "negative"]
    assert [(len(task.train), len(task.test)) for task in stream.rounds] == [(2000, 400)] * 5
    assert all(task.train.classes == task.test.classes == CIFAR10 for task in stream.rounds)
    raw = np.load(shared_data / "cifar10" / "test.npz")
    cats = raw["images"][raw["labels"] == 3]
    clean, negative = (stream.rounds[place].test.of(["cat"]) for place in (0, 4))
    assert np.array_equal([decode(one) for one in clean], cats[0::5])
    assert np.array_equal([255 - decode(one) for one in negative], cats[4::5])
    assert len(stream.tests(4)) == 2000
    assert len({content_sha256(one) for one in stream.joint(4)}) == 10000


def test_order_of_the_domains(few: Path) -> None:
    domains = BENCHMARKS["cifar10-domains"]
    assert isinstance(domains, PictureDomains)
    natural = {task.name: task for task in domains(few, tasks=5).rounds}
    assert [len(task.train) for task in natural.values()] == [20, 20, 10, 10, 10]  # pictures 0 and 5, 1 and 6, 2, …
    mixed = domains(few, order_seed=2, keep=2, per_class=1)
    assert list(natural) == list(domains.domains)
    assert [task.name for task in mixed.rounds] == [domains.domains[index] for index in class_order(5, 2)[:2]]
    for task in mixed.rounds:  # which pictures a domain has does not depend on the order
        assert {one.name for one in task.train} <= {one.name for one in natural[task.name].train}
        assert len(task.train) == 10
        assert files(task.test) == files(natural[task.name].test)
    for wrong, said in (
        ({"tasks": 2}, "its tasks are its 5 domains, which cannot be split into 2"),
        ({"keep": 6}, "has 5 tasks, got keep=6"),
        ({"per_class": 2}, "class 'airplane' has 1 training pictures, got per_class=2"),
    ):
        with pytest.raises(ConfigError, match=said):
            domains(few, **wrong)


@pytest.mark.parametrize("name", [one.name for one in PICTURE_BENCHMARKS if one.name != "split-animals-5x2"])
def test_every_missing_data_set(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAPWOOD_DATA", raising=False)
    entry = benchmark_named(name)
    with pytest.raises(
        DataError, match=rf"^{name}: needs \S+.* and \S+.*; name their folder with --data or SAPWOOD_DATA$"
    ):
        entry()
    with pytest.raises(DataError, match=rf"^{name}: \S+.* are neither in .* nor in {re.escape(str(tmp_path))}$"):
        entry(tmp_path)


def test_names_that_people_type() -> None:
    assert benchmark_named("voc-15-1") is BENCHMARKS["voc-15-1"]
    split = benchmark_named("split-cifar100-20x5")
    assert isinstance(split, Benchmark)
    assert (split.name, split.sizes, split.description) == ("split-cifar100-20x5", (5,) * 20, "CIFAR-100, 20 tasks")
    assert benchmark_named("split-cifar10-1x10").sizes == (10,)  # type: ignore[union-attr]
    for unknown in ("split-cifar10-3x2", "split-cifar10-11x1", "split-cifar10-0x1", "domainnet-6x345", "own"):
        with pytest.raises(UnknownName, match=r"Known benchmarks: .*cub-10x20"):
            benchmark_named(unknown)
    for wrong in ("own:", "own:birds", "own:birds:", "own::5", "own:birds:five", "own:birds:-1"):
        with pytest.raises(ConfigError, match="write it as own:FOLDER:TASKS"):
            benchmark_named(wrong)
    with pytest.raises(DataError, match="no such file or folder: nowhere"):
        benchmark_named("own:nowhere:5")


def test_a_folder_of_ones_own(picture_folder: Folders, tmp_path: Path) -> None:
    folder = picture_folder({"a10": 10, "a9": 5, "b": 2, "c": 14}, name="garden v1.2", size=8)
    entry = benchmark_named(f"own:{folder}:3")
    stream = entry(tmp_path / "unused")
    assert (entry.name, stream.name, stream.kind) == ("garden v1.2-3x2", "garden v1.2-3x2", "classification")
    assert [task.name for task in stream.rounds] == ["a9+a10", "b", "c"]
    counts = [{name: task.test.labels.count(name) for name in task.test.classes} for task in stream.rounds]
    assert counts == [{"a9": 1, "a10": 2}, {"b": 1}, {"c": 3}]
    everything = [one.name for task in stream.rounds for one in (*task.train, *task.test)]
    assert len(everything) == len(set(everything)) == 31
    assert stream.split.startswith("20% of each class for testing, seed 0, file list sha256 ")
    assert benchmark_named(f"own:{folder}:3")().sha256() == stream.sha256()
    ordered = entry(order_seed=4)
    assert ordered.classes == tuple(stream.classes[index] for index in class_order(4, 4))
    assert files(ordered.tests(2)) == files(stream.tests(2))
    for tasks in (0, 5):
        with pytest.raises(ConfigError, match=rf"garden v1\.2: 4 classes make 1 to 4 tasks, got tasks={tasks}"):
            benchmark_named(f"own:{folder}:{tasks}")
    (folder / "c" / "000.png").rename(folder / "b" / "000b.png")
    assert benchmark_named(f"own:{folder}:3")().split != stream.split


def test_a_folder_with_parts(picture_folder: Folders, tmp_path: Path) -> None:
    for part, count in (("train", 3), ("validation", 1), ("testing", 2)):
        picture_folder(["x", "y"], count, name=f"pair/{part}", size=8)
    stream = benchmark_named(f"own:{tmp_path / 'pair'}:2")()
    assert [(task.name, len(task.train), len(task.test)) for task in stream.rounds] == [("x", 3, 2), ("y", 3, 2)]
    assert stream.split.startswith("parts train and test, file list sha256 ")
    picture_folder(["z", "z2"], 1, name="more", size=8)
    (tmp_path / "more" / "z").rename(tmp_path / "pair" / "testing" / "z")
    with pytest.raises(DataError, match="classes that are only tested: z; train and test need the same classes"):
        benchmark_named(f"own:{tmp_path / 'pair'}:2")
    (tmp_path / "more" / "z2").rename(tmp_path / "pair" / "train" / "z")
    (tmp_path / "pair" / "testing" / "y").rename(tmp_path / "more" / "y")
    with pytest.raises(DataError, match="classes that have no test pictures: y"):
        benchmark_named(f"own:{tmp_path / 'pair'}:2")


def test_a_table_of_ones_own(picture_folder: Folders, tmp_path: Path) -> None:
    folder = picture_folder(["x", "y"], 5, name="elsewhere/pictures", size=8)
    rows = [f"../elsewhere/pictures/{label}/{number:03d}.png,{label}" for label in "yx" for number in range(5)]
    (tmp_path / "tables").mkdir()
    table = tmp_path / "tables" / "birds.csv"
    table.write_text("\n".join(["path,label", *rows]))
    stream = benchmark_named(f"own:{table}:2")()
    assert (stream.name, stream.classes, len(stream.tests(1))) == ("birds-2x1", ("y", "x"), 2)
    assert len(stream.joint(1)) == 8
    picture_folder({"lonely": 1}, name="elsewhere/more")
    (tmp_path / "elsewhere" / "more" / "lonely").rename(folder / "lonely")
    with pytest.raises(DataError, match="class 'lonely' has one picture; two are needed"):
        benchmark_named(f"own:{folder}:2")


def test_a_folder_of_ones_own_masks(mask_folder: Folders, tmp_path: Path) -> None:
    for part in ("train", "test"):
        mask_folder(["road", "car", "tree"], 3, name=f"street/{part}")
    entry = benchmark_named(f"own:{tmp_path / 'street'}:2")
    stream = entry()
    assert (entry.name, stream.kind, stream.classes) == ("street-2-1", "segmentation", ("road", "car", "tree"))
    assert [task.name for task in stream.rounds] == ["road+car", "tree"]
    assert len(stream.tests(1)) == 3
    assert entry(tasks=3, keep=1).name == "street-1-1"
    with pytest.raises(ConfigError, match="3 classes make 1 to 3 tasks, got tasks=4"):
        benchmark_named(f"own:{tmp_path / 'street'}:4")
    with pytest.raises(DataError, match="has no parts"):
        benchmark_named(f"own:{tmp_path / 'street' / 'train'}:2")


def files(pictures: Pictures) -> list[str]:
    return sorted(one.name for one in pictures)
