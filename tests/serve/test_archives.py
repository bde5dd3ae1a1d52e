"""Zips as people pack them, and zips that mean harm."""

from __future__ import annotations

import io
import os
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from sapwood.data.masks import read_masks
from sapwood.data.sources import read_data
from sapwood.errors import DataError
from sapwood.serve.archives import ArchiveLimits, unpack


def packed(folder: Path, entries: Iterable[tuple[str | zipfile.ZipInfo, bytes]], **options: Any) -> Path:
    """A zip of exactly these entries."""
    path = folder / "given.zip"
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def pack_folder(source: Path, target: Path, below: str = "") -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(source.rglob("*")):
            if file.is_file():
                archive.write(file, f"{below}{file.relative_to(source).as_posix()}")
    return target


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.mark.parametrize("below", ["", "animals/"])
def test_class_folders(picture_folder: Any, tmp_path: Path, out: Path, below: str) -> None:
    pictures = picture_folder(["ant", "bee"], 2)
    (pictures / "ant" / "notes.txt").write_text("mine")
    (pictures / "__MACOSX").mkdir()
    (pictures / "__MACOSX" / "._000.png").write_bytes(b"x")
    found = unpack(pack_folder(pictures, tmp_path / "a.zip", below), out)
    assert (found.files, found.skipped) == (4, 2)
    read = read_data(found.folder)
    assert read.classes == ("ant", "bee")
    for picture in read:
        assert isinstance(picture.source, Path)
        assert picture.source.read_bytes() == (pictures / picture.source.relative_to(out)).read_bytes()


@pytest.mark.parametrize("below", ["", "road scenes/"])
def test_masks(mask_folder: Any, tmp_path: Path, out: Path, below: str) -> None:
    found = unpack(pack_folder(mask_folder(["road"], 2), tmp_path / "a.zip", below), out)
    assert found.files == 5
    assert read_masks(found.folder).classes == ("road",)


def test_one_class_keeps_its_folder(picture_folder: Any, tmp_path: Path, out: Path) -> None:
    assert read_data(unpack(pack_folder(picture_folder(["ant"], 2), tmp_path / "a.zip"), out).folder).classes == (
        "ant",
    )


def link(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


def named(name: str) -> zipfile.ZipInfo:
    """An entry whose name is written as it is; the constructor would cut it at a zero byte."""
    entry = zipfile.ZipInfo("x")
    entry.filename = name
    return entry


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("../ant/a.png", "leads out"),
        ("ant/../../a.png", "leads out"),
        ("/ant/a.png", "leads out"),
        ("ant//a.png", "leads out"),
        (named("..\\a.png"), "no path"),
        ("C:/ant/a.png", "no path"),
        (named("ant/a\0.png"), "no path"),
        ("ant/a\nb.png", "control character"),
        (link("ant/b.png"), "is a link"),
        ("a/b/c/d/e/f/g/h/i/a.png", "folders deep"),
        ("x" * 10_000 + "/a.png", "200 bytes"),
        ("ant/A.PNG", "two entries"),
        ("ant/a.png/b.png", "two entries"),
    ],
    ids=str,
)
def test_names_that_mean_harm(tmp_path: Path, out: Path, entry: Any, words: str) -> None:
    archive = packed(tmp_path, [("ant/a.png", b"good"), ("bee/a.png", b"good"), (entry, b"evil")])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=words) as refused:
        unpack(archive, out)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "stored",
    ["Vögel".encode(), unicodedata.normalize("NFD", "Vögel").encode(), "Vögel".encode("cp437")],
    ids=["utf-8", "utf-8 in parts", "cp437"],
)
def test_names_that_do_not_say_how_they_are_written(stored: bytes, tmp_path: Path, out: Path) -> None:
    dummy = "X" * len(stored)  # a name in ASCII is marked as nothing
    path = packed(tmp_path, [(f"{dummy}/a.png", b"a"), ("bee/b.png", b"b")])
    path.write_bytes(path.read_bytes().replace(dummy.encode(), stored))
    assert sorted(child.name for child in unpack(path, out).folder.iterdir()) == ["Vögel", "bee"]


def test_an_existing_file_is_never_written_to(tmp_path: Path, out: Path) -> None:
    (tmp_path / "outside").write_bytes(b"mine")
    (out / "ant").mkdir()
    os.symlink(tmp_path / "outside", out / "ant" / "a.png")
    with pytest.raises(FileExistsError):
        unpack(packed(tmp_path, [("ant/a.png", b"evil")]), out)
    assert (tmp_path / "outside").read_bytes() == b"mine"


SMALL = ArchiveLimits(entries=3, total_bytes=5000, file_bytes=3000, ratio=10, ratio_from=1000)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([(f"ant/{index}.png", b"") for index in range(4)], "more than 3 files"),
        ([("ant/a.png", os.urandom(3001))], "more than 3,000 bytes"),
        ([(f"ant/{index}.png", os.urandom(2000)) for index in range(3)], "more than 5,000 bytes"),
        ([("ant/a.png", bytes(2000))], "shrinks more than 10 times"),
        ([(f"ant/{index}.txt", os.urandom(2000)) for index in range(3)], "more than 5,000 bytes"),
    ],
)
def test_too_large(tmp_path: Path, out: Path, entries: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        unpack(packed(tmp_path, entries, compression=zipfile.ZIP_DEFLATED), out, SMALL)
    assert not list(out.iterdir())


def test_a_bomb_of_the_usual_limits(tmp_path: Path, out: Path) -> None:
    archive = packed(tmp_path, [("ant/a.bmp", bytes(8 << 20))], compression=zipfile.ZIP_DEFLATED)
    assert archive.stat().st_size < 100_000
    with pytest.raises(DataError, match="shrinks more than"):
        unpack(archive, out)


def test_sizes_that_lie(tmp_path: Path, out: Path) -> None:
    """The entry declares 100 bytes and unpacks to 100,000."""
    content = bytes(100_000)
    stream = zlib.compressobj(wbits=-15)
    data = stream.compress(content) + stream.flush()
    name, crc = b"ant/a.png", zlib.crc32(content)
    local = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 8, 0, 33, crc, len(data), 100, len(name), 0) + name
    fields = (20, 20, 0, 8, 0, 33, crc, len(data), 100, len(name), 0, 0, 0, 0, 0, 0)
    central = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", *fields) + name
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, len(central), len(local) + len(data), 0)
    (tmp_path / "lie.zip").write_bytes(local + data + central + end)
    with pytest.raises(DataError, match="damaged"):
        unpack(tmp_path / "lie.zip", out)
    assert sum(file.stat().st_size for file in out.rglob("*.png")) <= 100


def test_encrypted(tmp_path: Path, out: Path) -> None:
    archive = packed(tmp_path, [("ant/a.png", b"secret")])
    content = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    archive.write_bytes(content)
    with pytest.raises(DataError, match="encrypted"):
        unpack(archive, out)


@pytest.mark.parametrize("content", [b"", b"no zip", b"\x89PNG\r\n\x1a\n" + bytes(50), b"PK\x03\x04" + bytes(60)])
def test_no_zip(tmp_path: Path, out: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"not a zip|damaged"):
        unpack(tmp_path / "a.zip", out)


def test_cut_short_or_changed(tmp_path: Path, out: Path, picture_folder: Any) -> None:
    content = pack_folder(picture_folder(["ant"], 3), tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="damaged"):
        unpack(tmp_path / "a.zip", out)
    place = content.index(b"IDAT") + 20
    (tmp_path / "a.zip").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(DataError, match="damaged"):
        unpack(tmp_path / "a.zip", out)


def test_nothing_of_use(tmp_path: Path, out: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as inner:
        inner.writestr("ant/a.png", b"x")
    with pytest.raises(DataError, match="holds no pictures"):
        unpack(packed(tmp_path, [("ant/a.html", b"<script>"), ("ant/inner.zip", buffer.getvalue())]), out)
