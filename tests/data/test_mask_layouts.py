"""Where the masks and pictures of VOC, ADE20K, Cityscapes and ACDC lie: each layout in miniature."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sapwood.data.benchmarks import BENCHMARKS
from sapwood.data.mask_layouts import CITYSCAPES, CONDITIONS, VOC
from sapwood.data.masks import MaskedPictures, decode_mask
from sapwood.data.pictures import Pictures
from sapwood.data.splits import class_order
from sapwood.errors import ConfigError, DataError

DATA = Path(os.environ.get("SAPWOOD_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is remembered of masks goes where the test can see it."""
    monkeypatch.setenv("SAPWOOD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(mask: Path, values: Iterable[int], picture: Path) -> None:
    """A mask of one row that holds ``values``, and a picture of its size."""
    row = np.array([list(values)], np.uint8)
    for file, pixels in ((mask, row), (picture, np.zeros((*row.shape, 3), np.uint8))):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)


def stems(pictures: Pictures) -> list[str]:
    return [Path(picture.name).stem for picture in pictures]


def targets(pictures: Pictures, index: int, classes: Iterable[str]) -> np.ndarray:
    """Channels of a mask as training sees it, the classes being numbered from 1."""
    assert isinstance(pictures, MaskedPictures)
    table = pictures.legend.lookup({name: channel for channel, name in enumerate(classes, 1)})
    return table[decode_mask(pictures[index], pictures.legend, size=None)]


def make_voc(root: Path, lists: str = "train_aug.txt") -> None:
    folder = root / "VOCdevkit" / "VOC2012"
    held = {"a": (0, 1, 255), "b": (15, 16), "c": (16, 0), "d": (20, 17), "e": (0, 255), "v": (1, 20)}
    for stem, values in held.items():
        write(folder / "SegmentationClassAug" / f"{stem}.png", values, folder / "JPEGImages" / f"{stem}.jpg")
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    (folder / "ImageSets" / "Segmentation" / "val.txt").write_text("v\n")
    (folder / "ImageSets" / "Segmentation" / lists).write_text(
        "a\nb\n/JPEGImages/c.jpg /SegmentationClassAug/c.png\nd\ne\n"
    )


@pytest.mark.parametrize("lists", ["train_aug.txt", "trainaug.txt"])
def test_voc(tmp_path: Path, lists: str) -> None:
    make_voc(tmp_path, lists)
    stream = BENCHMARKS["voc-15-5"](tmp_path)
    assert stream.classes == VOC
    assert [part.name for part in stream.rounds] == [
        "aeroplane+bicycle+13 more",
        "pottedplant+sheep+sofa+train+tvmonitor",
    ]
    assert [stems(part.train) for part in stream.rounds] == [["a", "b"], ["b", "c", "d"]]
    assert [stems(part.test) for part in stream.rounds] == [["v"], ["v"]]
    assert targets(stream.rounds[0].train, 0, VOC).tolist() == [[0, 1, 255]]
    assert targets(stream.rounds[1].train, 0, VOC).tolist() == [[0, 16]]
    disjoint = BENCHMARKS["voc-15-5"](tmp_path / "VOCdevkit" / "VOC2012", protocol="disjoint")
    assert [stems(part.train) for part in disjoint.rounds] == [["a"], ["b", "c", "d"]]
    sequential = BENCHMARKS["voc-15-5"](tmp_path, protocol="sequential")
    assert targets(sequential.rounds[1].train, 0, VOC).tolist() == [[15, 16]]
    assert stream.background == "include"


def test_voc_with_gaps(tmp_path: Path) -> None:
    make_voc(tmp_path)
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    (folder / "JPEGImages" / "b.jpg").unlink()
    (folder / "SegmentationClassAug" / "c.png").unlink()
    with pytest.raises(DataError, match=r"voc-15-1: \S*b\.jpg and 1 more: no such file"):
        BENCHMARKS["voc-15-1"](tmp_path)
    (folder / "ImageSets" / "Segmentation" / "train_aug.txt").unlink()
    with pytest.raises(DataError, match=r"has no train_aug\.txt and no trainaug\.txt"):
        BENCHMARKS["voc-15-1"](tmp_path)
    (folder / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.raises(DataError, match=r"voc-15-1: \S*VOC2012 has no ImageSets/Segmentation/val\.txt"):
        BENCHMARKS["voc-15-1"](tmp_path)


def make_ade(root: Path) -> None:
    folder = root / "ADEChallengeData2016"
    for stem, values in {"t1": (1, 0), "t2": (100, 101), "t3": (150,), "t4": (0,)}.items():
        write(folder / "annotations/training" / f"{stem}.png", values, folder / "images/training" / f"{stem}.jpg")
    write(folder / "annotations/validation/v1.png", (1, 150), folder / "images/validation/v1.jpg")


def test_ade(tmp_path: Path) -> None:
    make_ade(tmp_path)
    stream = BENCHMARKS["ade-100-50"](tmp_path)
    assert (len(stream.classes), stream.classes[0], stream.classes[99], stream.classes[-1]) == (
        150,
        "wall",
        "buffet",
        "flag",
    )
    assert [stems(part.train) for part in stream.rounds] == [["t1", "t2"], ["t2", "t3"]]
    assert targets(stream.rounds[1].train, 0, stream.classes).tolist() == [[0, 101]]
    assert stream.background == "exclude"
    assert len(BENCHMARKS["ade-25-25"](tmp_path, keep=1).rounds) == 1


def test_ade_from_lists(tmp_path: Path) -> None:
    make_ade(tmp_path)
    lists = tmp_path / "lists"
    lists.mkdir()
    np.save(lists / "train-0.npy", np.array([2, 0]))
    with pytest.raises(DataError, match=r"train-1\.npy: no such list; a partition cannot be computed"):
        BENCHMARKS["ade-100-50"](tmp_path, partition=lists)
    np.save(lists / "train-1.npy", np.array([1]))
    stream = BENCHMARKS["ade-100-50"](tmp_path, partition=lists)
    assert [stems(part.train) for part in stream.rounds] == [["t1", "t3"], ["t2"]]
    assert [len(part.train.classes) for part in stream.rounds] == [100, 50]
    with pytest.raises(ConfigError, match=r"task 2 .* is left without training pictures"):
        BENCHMARKS["ade-100-50"](tmp_path, partition=lists, every=2)
    assert stems(BENCHMARKS["ade-100-50"](tmp_path, partition=lists, every=2, keep=1).rounds[0].train) == ["t1", "t3"]


def make_cityscapes(root: Path) -> None:
    held = {"train/aachen/aachen_0": (7, 8), "train/aachen/aachen_1": (27, 0), "train/bochum/bochum_0": (33, 7, 3)}
    for stem, values in {**held, "val/ulm/ulm_0": (7, 33, 4)}.items():
        folder = root / "cityscapes"
        write(
            folder / "gtFine" / f"{stem}_gtFine_labelIds.png",
            values,
            folder / "leftImg8bit" / f"{stem}_leftImg8bit.png",
        )


def make_acdc(root: Path) -> None:
    for condition in CONDITIONS:
        for part in ("train", "val"):
            stem = f"{condition}/{part}/GOPR0001/GOPR0001_frame_{condition}"
            folder = root / "acdc"
            write(folder / "gt" / f"{stem}_gt_labelIds.png", (7, 0), folder / "rgb_anon" / f"{stem}_rgb_anon.png")


def test_cityscapes(tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    stream = BENCHMARKS["cityscapes-14-5"](tmp_path)
    assert stream.classes == CITYSCAPES
    assert [stems(part.train) for part in stream.rounds] == [
        ["aachen_0_leftImg8bit", "bochum_0_leftImg8bit"],
        ["aachen_1_leftImg8bit", "bochum_0_leftImg8bit"],
    ]
    # road is train id 0, truck 14, bicycle 18; ids 0 and 3 are ignored, the first task's classes are background now.
    assert targets(stream.rounds[1].train, 0, CITYSCAPES).tolist() == [[15, 255]]
    assert targets(stream.rounds[1].train, 1, CITYSCAPES).tolist() == [[19, 0, 255]]
    assert targets(stream.tests(1), 0, CITYSCAPES).tolist() == [[1, 19, 255]]
    assert stream.background == "exclude"


def test_all_ids_of_cityscapes(tmp_path: Path) -> None:
    """The published table of train ids: 19 of the ids 0 to 33 are evaluated, in the order of their ids."""
    train_ids = (
        "road sidewalk building wall fence pole light sign vegetation terrain sky person rider car truck bus train"
    )
    assert [name.split()[-1] for name in CITYSCAPES] == [*train_ids.split(), "motorcycle", "bicycle"]
    make_cityscapes(tmp_path)
    make_acdc(tmp_path)
    for file in (tmp_path / "acdc" / "gt" / "fog" / "train").rglob("*.png"):
        Image.fromarray(np.arange(34, dtype=np.uint8)[None]).save(file)
    (drawn,) = targets(BENCHMARKS["acdc"](tmp_path).rounds[1].train, 0, CITYSCAPES).tolist()
    evaluated = [7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]
    assert drawn == [evaluated.index(value) + 1 if value in evaluated else 255 for value in range(34)]


def test_acdc(tmp_path: Path) -> None:
    make_acdc(tmp_path)
    alone = BENCHMARKS["acdc"](tmp_path)
    assert [part.name for part in alone.rounds] == list(CONDITIONS)
    make_cityscapes(tmp_path)
    stream = BENCHMARKS["acdc"](tmp_path)
    assert [part.name for part in stream.rounds] == ["cityscapes", *CONDITIONS]
    assert [len(part.train) for part in stream.rounds] == [3, 1, 1, 1, 1]
    assert all(part.train.classes == CITYSCAPES for part in stream.rounds)
    assert [len(stream.tests(after)) for after in range(5)] == [1, 2, 3, 4, 5]
    assert [len(stream.joint(upto)) for upto in range(5)] == [3, 4, 5, 6, 7]
    assert targets(stream.joint(4), 0, CITYSCAPES).tolist() == [[1, 2]]
    mixed = BENCHMARKS["acdc"](tmp_path, order_seed=1, keep=3)
    weathers = [CONDITIONS[index] for index in class_order(4, 1)]
    assert [part.name for part in mixed.rounds] == ["cityscapes", *weathers[:2]]
    assert stream.domains
    with pytest.raises(ConfigError, match="acdc: its tasks are conditions, which cannot be split into 2"):
        BENCHMARKS["acdc"](tmp_path, tasks=2)
    (tmp_path / "cityscapes" / "gtFine" / "val").rename(tmp_path / "aside")
    with pytest.raises(DataError, match=r"acdc: \S*cityscapes has no gtFine/val"):
        BENCHMARKS["acdc"](tmp_path)


@pytest.mark.slow
def test_real_voc_has_the_published_sizes() -> None:
    """Of the whole data set, where it is: train_aug 10,582 pictures, overlapped and disjoint."""
    place = DATA / "VOCdevkit" / "VOC2012"
    if not (place / "SegmentationClassAug").is_dir():
        pytest.skip(f"PASCAL VOC 2012: no VOCdevkit/VOC2012/SegmentationClassAug in {DATA} (set SAPWOOD_DATA)")
    for protocol, sizes in {
        "overlapped": (9568, 487, 299, 491, 500, 548),
        "disjoint": (8437, 378, 299, 420, 500, 548),
    }.items():
        stream = BENCHMARKS["voc-15-1"](DATA, protocol=protocol)
        assert tuple(len(part.train) for part in stream.rounds) == sizes
        assert len(stream.tests(0)) == 1449
