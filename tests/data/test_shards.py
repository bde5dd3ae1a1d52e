"""Pictures in WebDataset shards."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sapwood.data.decode import decode
from sapwood.data.sources import read_data, split_names
from sapwood.errors import DataError
from sapwood.learner import Learner


def picture(grey: int, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((28, 28, 3), grey, np.uint8)).save(stream, kind)
    return stream.getvalue()


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    first = {"a/1.png": picture(10), "a/1.cls": b"1", "a/2.jpg": picture(200, "JPEG"), "a/2.txt": b"day\n"}
    second = {"._x.png": b"", "b.json": json.dumps({"label": "night", "id": 7}).encode(), "b.png": picture(20)}
    shard(folder / "train-009.tar", first)
    shard(folder / "train-010.tar", second | {"c.cls": b"dusk", "c.webp": picture(90, "WEBP")})
    (folder / "classes.txt").write_text("day\nnight\n")
    return folder


def test_a_folder_a_file_and_a_range_of_shards(shards: Path) -> None:
    found = read_data(shards)
    assert found.labels == ("night", "day", "night", "dusk")
    assert [decode(each).mean().round() for each in found] == pytest.approx([10, 200, 20, 90], abs=2)
    assert found[0].name == str(shards / "train-009.tar" / "a/1.png")
    assert read_data(shards / "train-{009..010}.tar").labels == found.labels
    assert read_data(str(shards / "train-010.tar")).labels == ("night", "dusk")
    part = pickle.loads(pickle.dumps(found.subset([3, 1])))
    assert (part.labels, decode(part[0]).mean().round()) == (("dusk", "day"), pytest.approx(90, abs=2))
    assert split_names(shards) == ()


def test_a_shard_of_a_whole_folder(shards: Path) -> None:
    members = {"./.DS_Store": b"x", "./._a.png": b"", "./a.cls": b"0", "./a.png": picture(10)}
    shard(shards / "train-011.tar", members)
    assert read_data(shards).labels == ("night", "day", "night", "dusk", "day")


def test_marks_and_blanks_of_editors_are_no_part_of_a_name(shards: Path) -> None:
    (shards / "classes.txt").write_bytes("\ufeffday \r\nnight\r\n".encode())
    members = {
        "a.png": picture(10),
        "a.cls": "\ufeff0\r\n".encode(),
        "b.png": picture(9),
        "b.txt": "\ufeffdusk ".encode(),
    }
    assert read_data(shard(shards / "train-011.tar", members)).labels == ("day", "dusk")


def test_a_round_is_learned_from_shards(shards: Path, tmp_path: Path) -> None:
    learner = Learner.create(tmp_path / "state", backbone="random:dinov2-tiny", method="ncm")
    learner.learn(str(shards / "train-{009..010}.tar"))
    assert learner.classes_ == ("night", "day", "dusk")


PNG = picture(1)


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"a.png": PNG}, "train.tar: sample a has no class (.cls, .txt, .json)"),
        ({"a.txt": b"x", "b.png": PNG}, "sample a has no picture"),
        ({"a.txt": b"x", "a.png": PNG, "a.jpg": PNG}, "sample a has more than one picture"),
        ({"a.txt": b"x", "a.npy": b"1", "a.png": PNG}, "member a.npy is unknown"),
        ({"a.json": b'{"class": 1}', "a.png": PNG}, "sample a: its class cannot be read ('label')"),
        ({"a.cls": b"3", "a.png": PNG}, "class 3 is a number; put the names beside the shards"),
        ({"a.cls": b"\xff", "a.png": PNG}, "its class cannot be read"),
        ({}, "holds no pictures"),
    ],
)
def test_what_is_wrong_in_a_shard_is_one_line(members: dict[str, bytes], says: str, tmp_path: Path) -> None:
    path = shard(tmp_path / "train.tar", members)
    with pytest.raises(DataError) as caught:
        read_data(path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("left", [1, 300, 512, 700, 1024, 1536, 2000, 2048, 2560])
def test_a_shard_that_was_cut_off(left: int, tmp_path: Path) -> None:
    path = shard(tmp_path / "train.tar", {"a.txt": b"x", "a.png": PNG, "b.txt": b"y", "b.png": PNG})
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(DataError, match=r"cut off|not a whole tar"):
        read_data(path)


def test_shards_that_are_not_there_or_are_no_tar(shards: Path) -> None:
    with pytest.raises(DataError, match="1 of 3 shards are not there"):
        read_data(shards / "train-{009..011}.tar")
    with pytest.raises(DataError, match="counts no shards"):
        read_data(shards / "train-{010..009}.tar")
    (shards / "classes.txt").write_text("day\n")
    with pytest.raises(DataError, match=r"class 1, but classes\.txt has 1 lines"):
        read_data(shards)
    (shards / "bad.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match="not a whole tar"):
        read_data(shards / "bad.tar")
    with pytest.raises(DataError, match="no such file"):
        read_data(shards / "other.tar")
