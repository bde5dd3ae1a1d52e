"""Segmentation benchmarks: CamVid's real frames counted independently, the layouts of the others in miniature."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sapwood.data.benchmarks import BENCHMARKS
from sapwood.data.legend import Legend
from sapwood.data.mask_benchmarks import MASK_BENCHMARKS, round_name, split_masks
from sapwood.data.mask_layouts import ade_classes
from sapwood.data.masks import MaskedPictures, decode_mask
from sapwood.data.pictures import Picture, Pictures
from sapwood.data.splits import class_order
from sapwood.data.streams import MaskStream
from sapwood.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is remembered of masks goes where the test can see it, and no SAPWOOD_DATA leads elsewhere."""
    monkeypatch.setenv("SAPWOOD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SAPWOOD_DATA", raising=False)
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


# ------------------------------------------------------------------------------------------------ CamVid, real frames


@pytest.fixture(scope="session")
def camvid_masks(shared_data: Path) -> dict[str, np.ndarray]:
    """Stem to values of CamVid's training masks, read with Pillow alone."""
    files = sorted((shared_data / "camvid" / "train" / "labels").glob("*.png"))
    return {file.stem: np.asarray(Image.open(file)) for file in files}


CAMVID = {
    "camvid-4-3": [(0, 1, 3, 7), (4, 5, 8)],
    "camvid-4-1": [(0, 1, 3, 7), (4,), (5,), (8,)],
    "camvid-6-5": [(0, 1, 2, 3, 4, 5), (6, 7, 8, 9, 10)],
}


@pytest.mark.parametrize("name", CAMVID)
def test_camvid_rounds(name: str, shared_data: Path, camvid_masks: dict[str, np.ndarray]) -> None:
    stream = BENCHMARKS[name](shared_data)
    names = json.loads((shared_data / "camvid" / "classes.json").read_text())["classes"]
    steps = CAMVID[name]
    assert stream.kind == "segmentation"
    assert stream.classes == tuple(names[value] for step in steps for value in step)
    for part, step in zip(stream.rounds, steps, strict=True):
        assert stems(part.train) == [stem for stem, mask in camvid_masks.items() if np.isin(mask, step).any()]
        assert part.train.classes == tuple(names[value] for value in step)
        assert len(part.test) == 233
    # Annotated pixels keep their class, void is ignored, everything else is background.
    last = stream.rounds[-1].train
    for index in (0, len(last) // 2):
        mask = camvid_masks[stems(last)[index]]
        expected = np.where(mask == 11, 255, 0)
        for value in steps[-1]:
            expected[mask == value] = stream.classes.index(names[value]) + 1
        assert np.array_equal(targets(last, index, stream.classes), expected)


def test_camvid_counts(shared_data: Path) -> None:
    """Numbers of the data set's own table: 349, 319 and 360 training frames hold Pavement, Tree and Car."""
    assert [len(part.train) for part in BENCHMARKS["camvid-4-1"](shared_data).rounds] == [367, 349, 319, 360]
    halves = [BENCHMARKS["camvid-4-1"](shared_data, every=2).rounds[1].train]
    whole = BENCHMARKS["camvid-4-1"](shared_data).rounds[0].train
    assert set(stems(halves[0])) < set(stems(whole)[::2])


def test_camvid_protocols(shared_data: Path, camvid_masks: dict[str, np.ndarray]) -> None:
    disjoint = BENCHMARKS["camvid-6-5"](shared_data, protocol="disjoint")
    early = [stem for stem, mask in camvid_masks.items() if not np.isin(mask, range(6, 11)).any()]
    assert [stems(part.train) for part in disjoint.rounds] == [early, [s for s in camvid_masks if s not in early]]
    sequential = BENCHMARKS["camvid-6-5"](shared_data, protocol="sequential")
    assert [stems(part.train) for part in sequential.rounds] == [stems(part.train) for part in disjoint.rounds]
    assert [len(part.train.classes) for part in disjoint.rounds] == [6, 5]
    assert [len(part.train.classes) for part in sequential.rounds] == [6, 11]
    assert sequential.sha256() != disjoint.sha256()  # the same files with other labels
    # Every frame holds one of Pavement, Tree and Car: there is nothing to begin with.
    with pytest.raises(ConfigError, match=r"task 1 \(Sky\+Building\+Road\+Fence\) is left without .* 'overlapped'"):
        BENCHMARKS["camvid-4-3"](shared_data, protocol="disjoint")


def test_camvid_tests_and_joint(shared_data: Path, camvid_masks: dict[str, np.ndarray]) -> None:
    stream = BENCHMARKS["camvid-4-1"](shared_data)
    for after in range(4):
        measured = stream.tests(after)
        assert len(measured) == 233
        assert measured.classes == ("Sky", "Building", "Road", "Pavement", "Tree", "Fence", "Car")
        joint = stream.joint(after)
        assert set(joint.classes) == set(stream.classes[: 4 + after])
        assert sorted(stems(joint)) == sorted(camvid_masks)  # each frame once
    mask = camvid_masks[stems(joint)[0]]
    expected = np.where(mask == 11, 255, 0)
    for channel, value in enumerate((0, 1, 3, 7, 4, 5, 8), 1):
        expected[mask == value] = channel
    assert np.array_equal(targets(joint, 0, stream.classes), expected)
    # While Tree and Car are still to come, the test masks name them, and they stay out of the measure.
    file = shared_data / "camvid" / "test" / "labels" / f"{stems(measured)[0]}.png"
    truth = np.asarray(Image.open(file))
    seen = targets(measured, 0, stream.classes[:5])
    assert np.array_equal(seen == 255, np.isin(truth, (5, 8, 11)))
    assert np.array_equal(seen == 0, np.isin(truth, (2, 6, 9, 10)))


def test_order_tasks_and_sums(shared_data: Path) -> None:
    natural = BENCHMARKS["camvid-4-3"](shared_data)
    mixed = BENCHMARKS["camvid-4-3"](shared_data, order_seed=3, keep=1)
    order = [natural.classes[index] for index in class_order(7, 3)]
    assert mixed.classes == tuple(sorted(order[:4], key=natural.classes.index))
    assert (len(mixed.rounds), mixed.order_seed) == (1, 3)
    assert set(mixed.tests(0).classes) == set(natural.classes)  # the rest are still classes of the future
    assert BENCHMARKS["camvid-4-3"](shared_data / "camvid").sha256() == natural.sha256() != mixed.sha256()
    assert BENCHMARKS["camvid-4-1"](shared_data).sha256() != natural.sha256()


def test_another_number_of_tasks(shared_data: Path) -> None:
    stream = BENCHMARKS["camvid-4-3"](shared_data, tasks=3, keep=2, every=9)
    assert (stream.name, stream.domains) == ("camvid-3-3", False)
    assert [part.train.classes for part in stream.rounds] == [
        ("Sky", "Building", "Road"),
        ("Pavement", "Tree", "Fence"),
    ]
    assert stream.rounds[1].name == "Fence+Pavement+Tree"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"tasks": 8}, "7 classes make 1 to 7 tasks, got tasks=8"),
        ({"keep": 3}, "has 2 tasks, got keep=3"),
        ({"every": 0}, "every must be >= 1"),
        ({"protocol": "joint"}, "no protocol 'joint'"),
    ],
)
def test_wrong_arguments(shared_data: Path, wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        BENCHMARKS["camvid-4-3"](shared_data, **wrong)


def test_classes_per_task() -> None:
    expected = {
        "voc-19-1": (19, 1),
        "voc-15-1": (15, 1, 1, 1, 1, 1),
        "voc-10-1": (10, *[1] * 10),
        "voc-5-3": (5, 3, 3, 3, 3, 3),
        "ade-50-50": (50, 50, 50),
        "ade-100-10": (100, 10, 10, 10, 10, 10),
        "ade-25-25": (25,) * 6,
        "cityscapes-14-1": (14, 1, 1, 1, 1, 1),
        "cityscapes-7-3": (7, 3, 3, 3, 3),
        "cityscapes-10-1": (10, *[1] * 9),
        "camvid-4-1": (4, 1, 1, 1),
    }
    assert {name: BENCHMARKS[name].sizes for name in expected} == expected
    assert len(set(ade_classes())) == 150
    assert round_name(["a" * 30, "b" * 30]) == "a" * 30 + "+" + "b" * 30


@pytest.mark.parametrize("name", [entry.name for entry in MASK_BENCHMARKS])
def test_missing_data_names_files_and_places(name: str, tmp_path: Path) -> None:
    entry = BENCHMARKS[name]
    assert entry.kind == "segmentation"
    assert entry.description
    wanted = entry.where.split()[0]  # the data set's folder
    with pytest.raises(DataError, match=rf"^{name}: needs \S+.* and \S+; name their folder with --data"):
        entry()
    with pytest.raises(DataError, match=rf"^{name}: \S+.* neither in {re.escape(str(tmp_path / wanted))}"):
        entry(tmp_path)


# ---------------------------------------------------------------------------------------------- a folder of one's own


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "garden"
    held = {"train/1": (0, 1), "train/2": (2, 3), "train/3": (3, 255), "train/4": (0,), "test/9": (1, 3, 0)}
    for name, values in held.items():
        part, stem = name.split("/")
        write(folder / part / "masks" / f"{stem}.png", values, folder / part / "images" / f"{stem}.png")
    (folder / "classes.json").write_text('{"background": 0, "pond": 1, "bed": 2, "path": 3}')
    return folder


def test_split_of_any_folder(own_folder: Path) -> None:
    stream = split_masks(own_folder, (2, 1))
    assert (stream.name, stream.classes, stream.background) == ("garden-2-1", ("pond", "bed", "path"), "include")
    assert [(part.name, stems(part.train)) for part in stream.rounds] == [
        ("pond+bed", ["1", "2"]),
        ("path", ["2", "3"]),
    ]
    assert targets(stream.rounds[1].train, 0, stream.classes).tolist() == [[0, 3]]
    assert stems(stream.tests(1)) == ["9"]
    (own_folder / "train" / "classes.txt").write_text("background\npond\nbed\npath\n")
    other = split_masks(own_folder, (2, 1), "disjoint", own_folder / "train", order_seed=1)
    assert other.classes != stream.classes
    assert stems(other.tests(1)) == ["1", "2", "3", "4"]
    assert stems(split_masks(own_folder / "train", (2, 1), test=own_folder).tests(1)) == ["9"]
    assert isinstance(other, MaskStream)
    with pytest.raises(ConfigError, match=r"split into 2,2 needs 4 classes, the masks have 3: pond, bed, path"):
        split_masks(own_folder, (2, 2))
    with pytest.raises(DataError, match="has no parts"):
        split_masks(own_folder / "train", (2, 1))


def test_split_of_masks_in_memory() -> None:
    legend = Legend({0: "background", 1: "pond", 2: "bed"})
    pixels = np.zeros((1, 2, 3), np.uint8)
    masks = [np.array([row], np.uint8) for row in ([0, 1], [1, 2], [2, 255])]
    pictures = MaskedPictures((Picture(str(n), pixels, mask=mask) for n, mask in enumerate(masks)), legend)
    stream = split_masks(pictures, (1, 1), "disjoint", pictures)
    assert [[picture.name for picture in part.train] for part in stream.rounds] == [["0"], ["1", "2"]]
    other = split_masks(pictures.subset([0, 1, 1]), (1, 1), "overlapped", pictures)
    assert other.sha256() != split_masks(pictures, (1, 1), "overlapped", pictures).sha256()
    with pytest.raises(ConfigError, match="give test="):
        split_masks(pictures, (1, 1))
