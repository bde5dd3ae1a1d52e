"""The data sets of the classification benchmarks, in miniature: their own layouts, class folders, what goes wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from sapwood.data.benchmarks import benchmark_named
from sapwood.data.decode import decode
from sapwood.data.pictures import Picture, Pictures
from sapwood.data.splits import class_order
from sapwood.data.streams import Stream
from sapwood.errors import DataError

WNIDS = [f"n{1000000 + 7919 * number:08d}" for number in range(200)]
BIRDS = [f"{number:03d}.Bird_{number}" for number in range(1, 201)]
CARS = [f"Make {number} Coupe 2012" for number in range(196)]


@pytest.fixture(autouse=True)
def nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAPWOOD_DATA", raising=False)


def make_folders(folder: Path, classes: Iterable[str], count: int) -> None:
    """Class folders of files that nobody decodes."""
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / f"{number}.jpg").write_bytes(b"picture")


def counts(stream: Stream) -> list[tuple[int, int, int]]:
    """Classes, training and test pictures of each round, whose test classes are those that it trains."""
    assert all(part.train.classes == part.test.classes for part in stream.rounds)
    return [(len(part.train.classes), len(part.train), len(part.test)) for part in stream.rounds]


def inside(pictures: Pictures, folder: Path) -> list[str]:
    found = []
    for one in pictures:
        assert isinstance(one.source, Path)
        found.append(one.source.relative_to(folder).as_posix())
    return sorted(found)


# ---------------------------------------------------------------------------------------------------------- CIFAR-100


FRUITS = [f"fruit_{number:02d}" for number in range(100)]


def write_cifar100(folder: Path, names: Sequence[str] = FRUITS) -> np.ndarray:
    """The binary version with three and one records a class, labels in turn; gives all training pixels as planes."""
    folder.mkdir(parents=True, exist_ok=True)
    planes = np.random.default_rng(3).integers(0, 256, (300, 3, 32, 32), dtype=np.uint8)
    for part, count in (("train", 300), ("test", 100)):
        records = [bytes([number % 20, number % 100]) + planes[number].tobytes() for number in range(count)]
        (folder / f"{part}.bin").write_bytes(b"".join(records))
    (folder / "fine_label_names.txt").write_text("\n".join(names) + "\n")
    (folder / "coarse_label_names.txt").write_text("\n".join(map(str, range(20))) + "\n")
    return planes


def test_cifar100_as_its_authors_ship_it(tmp_path: Path) -> None:
    planes = write_cifar100(tmp_path / "cifar-100-binary")
    stream = benchmark_named("split-cifar100-10x10")(tmp_path, order_seed=1993)
    assert counts(stream) == [(10, 30, 10)] * 10
    assert stream.classes[:3] == ("fruit_68", "fruit_56", "fruit_78")  # the published order
    picture = stream.rounds[0].train.of(["fruit_56"])[1]  # record 156
    assert np.array_equal(decode(picture), np.moveaxis(planes[156], 0, 2))
    assert stream.rounds[0].name == "fruit_68+fruit_56+8 more"
    twenty = benchmark_named("split-cifar100-10x10")(tmp_path, tasks=20)
    assert (twenty.name, counts(twenty)) == ("split-cifar100-20x5", [(5, 15, 5)] * 20)
    assert (
        counts(benchmark_named("split-cifar100-5x20")(tmp_path / "cifar-100-binary", per_class=2)) == [(20, 40, 20)] * 5
    )


def test_cifar100_in_class_folders(tmp_path: Path) -> None:
    make_folders(tmp_path / "cifar100" / "train", FRUITS, 2)
    make_folders(tmp_path / "cifar100" / "test", FRUITS, 1)
    stream = benchmark_named("split-cifar100-10x10")(tmp_path)
    assert counts(stream) == [(10, 20, 10)] * 10
    assert stream.classes == tuple(FRUITS)
    assert stream.split.startswith("parts train and test, file list sha256 ")


def test_cifar100_that_is_broken(tmp_path: Path) -> None:
    folder, entry = tmp_path / "cifar-100-binary", benchmark_named("split-cifar100-10x10")
    write_cifar100(folder, FRUITS[:99])
    with pytest.raises(DataError, match=r"fine_label_names\.txt: expected 100 different names, got 99"):
        entry(tmp_path)
    write_cifar100(folder)
    whole = (folder / "test.bin").read_bytes()
    for content in (whole[:-1], b"", whole[:1] + b"\x64" + whole[2:]):
        (folder / "test.bin").write_bytes(content)
        with pytest.raises(DataError, match=r"test\.bin: is not made of records of 3074 bytes with fine labels below"):
            entry(tmp_path)
    (folder / "test.bin").unlink()
    with pytest.raises(DataError, match=r"^split-cifar100-10x10: \S*cifar-100-binary has no test\.bin$"):
        entry(tmp_path)


# --------------------------------------------------------------------------------------------------------- ImageNet-R


def test_imagenet_r_without_parts(tmp_path: Path) -> None:
    folder = tmp_path / "imagenet-r"
    make_folders(folder, WNIDS, 5)
    (folder / "README.txt").write_text("about")
    entry = benchmark_named("imagenet-r-10x20")
    stream = entry(tmp_path, order_seed=1993)
    assert counts(stream) == [(20, 80, 20)] * 10
    assert stream.classes == tuple(sorted(WNIDS)[index] for index in class_order(200, 1993))
    lists = {"train": inside(stream.joint(9), folder), "test": inside(stream.tests(9), folder)}
    assert len({*lists["train"], *lists["test"]}) == 1000
    assert len({name.split("/")[1] for name in lists["test"]}) == 5  # not always the same file of a class
    lines = sorted(f"{part} {name.split('/')[0]} {name}\n" for part, names in lists.items() for name in names)
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert stream.split == f"20% of each class for testing, seed 0, file list sha256 {expected}"
    assert entry(tmp_path).split == stream.split  # the order of the classes is not that of the files


def test_imagenet_r_in_parts(tmp_path: Path) -> None:
    for part, count in (("train", 2), ("test", 1)):
        make_folders(tmp_path / "imagenet-r" / part, WNIDS, count)
    assert counts(benchmark_named("imagenet-r-10x20")(tmp_path)) == [(20, 40, 20)] * 10
    (tmp_path / "imagenet-r" / "test" / WNIDS[3]).rename(tmp_path / "aside")
    with pytest.raises(DataError, match=f"classes that have no test pictures: {WNIDS[3]};"):
        benchmark_named("imagenet-r-10x20")(tmp_path)


def test_one_division_has_one_hash(tmp_path: Path) -> None:
    """The same division written out as folders is known as the same."""
    make_folders(tmp_path / "a" / "imagenet-r", WNIDS, 3)
    cut = benchmark_named("imagenet-r-10x20")(tmp_path / "a")
    for part, pictures in (("train", cut.joint(9)), ("test", cut.tests(9))):
        for name in inside(pictures, tmp_path / "a" / "imagenet-r"):
            place = tmp_path / "b" / part / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(b"picture")
    written = benchmark_named("imagenet-r-10x20")(tmp_path / "b")
    assert cut.split.split("sha256 ")[1] == written.split.split("sha256 ")[1]


# ----------------------------------------------------------------------------------------------------------- CUB, Cars


def write_cub(folder: Path) -> list[tuple[str, int]]:
    """Three pictures a class, the second of them for testing; gives path and number of the class of each."""
    files = [(f"{name}/{letter}.jpg", number) for number, name in enumerate(BIRDS, 1) for letter in "abc"]
    for path, _ in files:
        (folder / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / path).write_bytes(b"picture")
    lists = {
        "images": [path for path, _ in files],
        "image_class_labels": [label for _, label in files],
        "train_test_split": [int(not path.endswith("b.jpg")) for path, _ in files],
        "classes": BIRDS,
    }
    for name, entries in lists.items():
        (folder / f"{name}.txt").write_text("".join(f"{number} {one}\n" for number, one in enumerate(entries, 1)))
    return files


def test_cub_as_its_authors_ship_it(tmp_path: Path) -> None:
    folder = tmp_path / "CUB_200_2011"
    write_cub(folder)
    stream = benchmark_named("cub-10x20")(tmp_path)
    assert counts(stream) == [(20, 40, 20)] * 10
    assert stream.classes == tuple(BIRDS)
    assert inside(stream.rounds[0].test, folder / "images")[:2] == [f"{name}/b.jpg" for name in BIRDS[:2]]
    assert stream.split.startswith("train_test_split.txt, file list sha256 ")


def test_cub_in_class_folders(tmp_path: Path) -> None:
    for part, count in (("train", 2), ("test", 1)):
        make_folders(tmp_path / "cub" / part, BIRDS, count)
    stream = benchmark_named("cub-10x20")(tmp_path, keep=2)
    assert counts(stream) == [(20, 40, 20)] * 2
    assert stream.split.startswith("parts train and test, ")


def test_cub_that_is_broken(tmp_path: Path) -> None:
    folder, entry = tmp_path / "CUB_200_2011", benchmark_named("cub-10x20")
    write_cub(folder)

    def said(file: str, old: str, new: str) -> str:
        whole = (folder / file).read_text()
        (folder / file).write_text(whole.replace(old, new, 1))
        with pytest.raises(DataError) as error:
            entry(tmp_path)
        (folder / file).write_text(whole)
        return str(error.value)

    assert "CUB_200_2011 are not of the same pictures" in said("image_class_labels.txt", "1 1\n", "")
    assert "has the class 201 and the part 1; expected a number" in said("image_class_labels.txt", "600 200", "600 201")
    assert "has the class 1 and the part 2;" in said("train_test_split.txt", "1 1\n", "1 2\n")
    assert "a.jpeg: no such file" in said("images.txt", "a.jpg", "a.jpeg")
    assert "differs from class '001.Bird_1' in letter case" in said("classes.txt", "002.Bird_2", "001.BIRD_1")
    assert "holds 201 classes, expected 200" in said("classes.txt", "1 001", "201 Dodo\n1 001")
    (folder / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"CUB_200_2011 has no classes\.txt$"):
        entry(tmp_path)


def test_cars(tmp_path: Path) -> None:
    for part, count in (("train", 2), ("test", 1)):
        make_folders(tmp_path / "cars" / part, CARS, count)
    stream = benchmark_named("cars-10")(tmp_path, order_seed=0)
    assert counts(stream) == [(16, 32, 16)] + [(20, 40, 20)] * 9
    natural = benchmark_named("cars-10")(tmp_path, tasks=10).classes
    assert natural == tuple(CARS)
    assert stream.classes == tuple(CARS[index] for index in class_order(196, 0))
    assert benchmark_named("cars-10")(tmp_path, tasks=14).name == "cars-14x14"
    for part in ("train", "test"):
        (tmp_path / "cars" / part / CARS[0]).rename(tmp_path / part)
    with pytest.raises(DataError, match=r"^cars-10: \S+cars holds 195 classes, expected 196$"):
        benchmark_named("cars-10")(tmp_path)


# ---------------------------------------------------------------------------------------------------------- DomainNet

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")


def write_domainnet(folder: Path) -> None:
    """One training and one test picture a class and domain; ``real`` tests nothing of the last class."""
    for domain in DOMAINS:
        lists: dict[str, list[str]] = {"train": [], "test": []}
        for number in range(345):
            (folder / domain / f"thing {number}").mkdir(parents=True)
            for part in lists:
                if (domain, part, number) != ("real", "test", 344):
                    path = f"{domain}/thing {number}/{part}.jpg"
                    (folder / path).write_bytes(b"picture")
                    lists[part].append(f"{path} {number}\n")
        for part, lines in lists.items():
            (folder / f"{domain}_{part}.txt").write_text("".join(lines))


def test_domainnet(tmp_path: Path) -> None:
    write_domainnet(tmp_path / "domainnet")
    entry = benchmark_named("domainnet")
    stream = entry(tmp_path)
    assert [part.name for part in stream.rounds] == list(DOMAINS)
    assert stream.domains
    assert stream.classes == tuple(f"thing {number}" for number in range(345))
    for part in stream.rounds:
        assert part.train.classes == stream.classes
        assert len(part.test) == 345 - (part.name == "real")
        assert {str(one.source).split("/")[-3] for one in (*part.train, *part.test)} == {part.name}
    assert [len(stream.tests(after)) for after in (0, 5)] == [345, 2069]
    mixed = entry(tmp_path / "domainnet", order_seed=5, keep=2)
    assert [part.name for part in mixed.rounds] == [DOMAINS[index] for index in class_order(6, 5)[:2]]
    assert mixed.classes == stream.classes

    folder = tmp_path / "domainnet"
    whole = (folder / "clipart_train.txt").read_text()
    for old, new, said in (
        ("344\n", "343\n", r"clipart_train\.txt, line 345: class 343 is 'thing 344' here and 'thing 343' before"),
        ("train.jpg 7\n", "train.jpg\n", r"clipart_train\.txt, line 8: expected <domain>/<class>/<file> <number>, got"),
        ("train.jpg 7\n", "trail.jpg 7\n", r"^domainnet: \S+/clipart/thing 7/trail\.jpg: no such file"),
        ("344\n", "345\n", "name 346 classes, expected 345"),
    ):
        (folder / "clipart_train.txt").write_text(whole.replace(old, new))
        with pytest.raises(DataError, match=said):
            entry(tmp_path)
    (folder / "clipart_train.txt").unlink()
    with pytest.raises(DataError, match=r"domainnet has no clipart_train\.txt"):
        entry(tmp_path)


def test_pictures_in_memory_have_a_list_too() -> None:
    from sapwood.data.picture_layouts import list_sha256

    pictures = Pictures([Picture("one", b"1", "a"), Picture("two", b"2", "b")])
    forwards = list_sha256(pictures, pictures.subset([0]), Path())
    assert forwards == list_sha256(pictures.subset([1, 0]), pictures.subset([0]), Path())
    assert forwards != list_sha256(pictures.subset([0]), pictures, Path())
