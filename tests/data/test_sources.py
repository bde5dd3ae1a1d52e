"""Labelled pictures from folders, tables, saved datasets and lists; every bad input gets its line."""

from __future__ import annotations

import csv
import os
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sapwood.data.decode import content_sha256, decode
from sapwood.data.pictures import Picture, Pictures
from sapwood.data.sources import has_splits, list_pictures, read_data, read_split
from sapwood.errors import DataError


def draw(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), colour).save(path)
    return path


def relative(pictures: Pictures, folder: Path) -> list[tuple[str, str | None]]:
    return [(Path(one.name).relative_to(folder).as_posix(), one.label) for one in pictures]


def refusal(data: object) -> str:
    with pytest.raises(DataError) as caught:
        read_data(data)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_class_folder(tmp_path: Path) -> None:
    for name in (
        "class10/a.jpg",
        "class2/deep/er/b.PNG",
        "class2/c.JPEG",
        "class2/deep/a10.webp",
        "class2/deep/a9.gif",
    ):
        draw(tmp_path / name)
    for litter in (".DS_Store", "class2/.DS_Store", "class2/._c.jpg", "class2/notes.txt", ".cache/x.jpg", "loose.png"):
        (tmp_path / litter).parent.mkdir(exist_ok=True)
        (tmp_path / litter).write_bytes(b"litter")
    (tmp_path / "__MACOSX" / "class2").mkdir(parents=True)
    pictures = read_data(tmp_path)
    assert pictures.classes == ("class2", "class10")
    assert relative(pictures, tmp_path) == [
        ("class2/c.JPEG", "class2"),
        ("class2/deep/a9.gif", "class2"),
        ("class2/deep/a10.webp", "class2"),
        ("class2/deep/er/b.PNG", "class2"),
        ("class10/a.jpg", "class10"),
    ]
    assert relative(read_data(str(tmp_path)), tmp_path) == relative(pictures, tmp_path)


def test_names_with_spaces_dots_and_unicode(tmp_path: Path) -> None:
    names = {"St. Bernard", "two words ", "v1.0", "Grüße", "三毛猫", "🐈"}
    for name in names:
        draw(tmp_path / name / "a b.ü.jpg")
    pictures = read_data(tmp_path)
    assert set(pictures.classes) == names
    assert all(decode(one).shape == (5, 6, 3) for one in pictures)


def test_decomposed_folder_names_give_composed_classes(tmp_path: Path) -> None:
    draw(tmp_path / unicodedata.normalize("NFD", "Büffel") / "a.png")
    pictures = read_data(tmp_path)
    assert pictures.classes == ("Büffel",)
    assert decode(pictures[0]).shape == (5, 6, 3)


def outcome(place: str) -> Pictures | str:
    try:
        return read_data(place)
    except DataError as error:
        return str(error)


names_of_folders = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="/\0"), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(names_of_folders.filter(lambda name: name not in {".", ".."}), min_size=1, max_size=4, unique=True)
)
def test_any_folder_names_are_read_or_refused_in_one_line(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as place:
        made = set()
        for name in names:
            try:
                draw(Path(place, name, "a.png"))
                made.add(name)
            except OSError:  # longer than the file system takes
                continue
        pictures = outcome(place)
        if isinstance(pictures, str):
            assert pictures.isprintable()
            return
        composed = {unicodedata.normalize("NFC", name) for name in made}
        assert set(pictures.classes) <= composed
        assert all(
            name.startswith(".") or name.casefold() in {"train", "val", "test"}
            for name in composed.difference(pictures.classes)
        )
        for picture in pictures:
            assert isinstance(picture.source, Path)
            assert unicodedata.normalize("NFC", picture.source.parent.name) == picture.label
            assert decode(picture).shape == (5, 6, 3)


def test_links_are_followed_but_not_round_in_circles(tmp_path: Path) -> None:
    draw(tmp_path / "elsewhere" / "a.png")
    draw(tmp_path / "data" / "cat" / "b.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "dog")
    os.symlink(tmp_path / "elsewhere" / "a.png", tmp_path / "data" / "cat" / "a.png")
    os.symlink(tmp_path / "data", tmp_path / "data" / "cat" / "up")
    os.symlink("me", tmp_path / "data" / "cat" / "me")
    os.symlink(tmp_path / "gone.png", tmp_path / "data" / "dog" / "gone.png")
    pictures = read_data(tmp_path / "data")
    names = relative(pictures, tmp_path / "data")
    assert ("cat/a.png", "cat") in names
    assert [name for name in names if name[1] == "dog"] == [("dog/a.png", "dog"), ("dog/gone.png", "dog")]
    assert len(names) < 10


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    draw(tmp_path / "cat" / "a.png")
    os.mkfifo(tmp_path / "cat" / "b.png")
    assert len(read_data(tmp_path)) == 1


def test_folders_that_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == f"no such file or folder: {tmp_path / 'none'}"
    assert "no data given" in refusal("")
    assert "holds no class folders; expected FOLDER/<class>/*.jpg" in refusal(tmp_path)
    loose = draw(tmp_path / "loose" / "a.jpg").parent
    draw(loose / "b.jpg")
    assert "holds 2 loose pictures and no class folders" in refusal(loose)
    draw(tmp_path / "some" / "full" / "a.png")
    (tmp_path / "some" / "bare").mkdir()
    (tmp_path / "some" / "words" / "deep").mkdir(parents=True)
    (tmp_path / "some" / "words" / "deep" / "a.txt").write_text("no picture")
    message = refusal(tmp_path / "some")
    assert "empty class folder: 'bare', 'words'; add pictures (" in message
    assert "full" not in message
    for part in ("images", "masks"):
        draw(tmp_path / "segmentation" / part / "a.png")
    assert "looks like pictures with masks" in refusal(tmp_path / "segmentation")
    (tmp_path / "segmentation" / "masks").rename(tmp_path / "segmentation" / "annotations")
    (tmp_path / "segmentation" / "classes.json").write_text("{}")
    assert "has images/ and classes.json, as pictures with masks have, and no folder" in refusal(
        tmp_path / "segmentation"
    )
    draw(tmp_path / "bad" / "a\nb" / "a.png")
    assert r"'a\nb' cannot be the name of a class" in refusal(tmp_path / "bad")
    assert "neither a folder nor a CSV" in refusal(loose / "a.jpg")
    assert "not the name of a file" in refusal("a\0b") or "no such file" in refusal("a\0b")
    assert "cannot read pictures from int" in refusal(3)


def test_letter_case_clash(tmp_path: Path) -> None:
    draw(tmp_path / "cat" / "a.png")
    draw(tmp_path / "CAT" / "a.png")
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("this file system does not tell letter cases apart")
    assert "differs from class" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "val", "test"), ("Training", "validation", "testing"), ("train", "valid", "test")],
)
def test_splits_are_recognised(tmp_path: Path, train: str, val: str, test: str) -> None:
    for part, count in ((train, 3), (val, 2), (test, 1)):
        for index in range(count):
            draw(tmp_path / part / "cat" / f"{index}.png")
    (tmp_path / "README.txt").write_text("about")
    assert has_splits(tmp_path)
    assert (len(read_data(tmp_path)), read_data(tmp_path).classes) == (3, ("cat",))
    assert [len(read_split(tmp_path, part)) for part in ("train", "val", "test")] == [3, 2, 1]
    assert read_data(tmp_path, follow_splits=False).classes == tuple(sorted({train, val, test}, key=str.casefold))
    draw(tmp_path / "bus" / "a.png")
    assert not has_splits(tmp_path)
    assert "bus" in read_data(tmp_path).classes


def test_splits_that_are_missing_or_double(tmp_path: Path) -> None:
    draw(tmp_path / "test" / "cat" / "a.png")
    assert "has no train split, only: test" in refusal(tmp_path)
    draw(tmp_path / "testing" / "cat" / "a.png")
    assert "are the same split" in refusal(tmp_path)
    with pytest.raises(DataError, match="has no parts"):
        read_split(tmp_path / "test", "test")
    with pytest.raises(DataError, match="no split is called 'exam'; known: train, val, test"):
        read_split(tmp_path, "exam")


def table(path: Path, rows: list[list[str]], encoding: str = "utf-8") -> Path:
    with open(path, "w", newline="", encoding=encoding) as stream:
        csv.writer(stream).writerows(rows)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv(tmp_path: Path, encoding: str) -> None:
    draw(tmp_path / "p" / "a, b.png", "blue")
    absolute = draw(tmp_path / "c.png")
    rows = [
        ["id", " Label", "PATH "],
        ["1", "wolf", "p/a, b.png"],
        [],
        ["2", " Büffel ", str(absolute)],
        ["3", "wolf", "p/../c.png"],
    ]
    pictures = read_data(table(tmp_path / "t.csv", rows, encoding))
    assert pictures.labels == ("wolf", "Büffel", "wolf")
    assert pictures.classes == ("wolf", "Büffel")
    assert decode(pictures[0])[0, 0].tolist() == [0, 0, 255]
    assert len({content_sha256(one) for one in pictures}) == 2


def test_csv_faults(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")

    def said(*rows: list[str]) -> str:
        return refusal(table(tmp_path / "t.csv", list(rows)))

    assert "t.csv: column 'label' is missing; the first line must name path,label" in said(
        ["path", "class"], ["a.png", "x"]
    )
    assert "(found: 'path;label')" in said(["path;label"], ["a.png;x"])
    assert "column 'path' and 'label' is missing" in said()
    assert "t.csv: holds no pictures" in said(["path", "label"])
    assert "t.csv: no such file: gone.png in row 3; paths are relative to" in said(
        ["path", "label"], ["a.png", "x"], ["gone.png", "x"]
    )
    assert "g3.png in row 4, and 7 more" in said(["path", "label"], *([f"g{n}.png", "x"] for n in range(1, 11)))
    assert "t.csv, row 2: label is empty" in said(["path", "label"], ["a.png"])
    assert "cannot be the name of a class" in said(["path", "label"], ["a.png", "../x"])
    assert "cannot be the name of a class" in said(["path", "label"], ["a.png", ".."])
    assert "'Cat' differs from class 'cat'" in said(["path", "label"], ["a.png", "cat"], ["a.png", "Cat"])
    (tmp_path / "t.csv").write_bytes("path,label\na.png,Büffel\n".encode("latin-1"))
    assert "is not a CSV in UTF-8" in refusal(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text('path,label\n"a.png,x\n')
    assert "is not a CSV" in refusal(tmp_path / "t.csv")


def test_list_of_pairs(tmp_path: Path) -> None:
    file = draw(tmp_path / "a.png")
    pairs = [(np.zeros((4, 4, 3), np.uint8), "x"), [file, "y"], (file.read_bytes(), "y"), Picture("z", file, "x")]
    pictures = read_data(pairs)
    assert pictures.labels == ("x", "y", "y", "x")
    assert [one.name for one in pictures] == ["item 0", str(file), "item 2", "z"]
    assert read_data(pictures) is pictures
    assert "holds no pictures" in refusal([])
    assert "item 1 of the list given is not a pair" in refusal([pairs[0], file])
    assert "item 0 of the list given is not a pair" in refusal([(file, 3)])
    assert "1 pictures have no label (first: z)" in refusal([Picture("z", file)])


def test_pictures_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b/2.png", "b/10.png", "b/deep/1.jpg", "c.png"):
        draw(tmp_path / name)
    draw(tmp_path / "named.png").rename(tmp_path / "named.dat")
    monkeypatch.chdir(tmp_path)
    pictures = list_pictures(["named.dat", "./c.png", Path("b"), "c.png"])
    deep = os.path.join("b", "deep", "1.jpg")
    assert [one.name for one in pictures] == [
        "named.dat",
        "./c.png",
        os.path.join("b", "2.png"),
        os.path.join("b", "10.png"),
        deep,
        "c.png",
    ]
    assert set(pictures.labels) == {None}
    (tmp_path / "bare").mkdir()
    for given_paths, message in (
        (["none.png"], "no such file or folder: none.png"),
        (["bare"], "bare: no pictures"),
        ([], "no pictures given"),
    ):
        with pytest.raises(DataError, match=message):
            list_pictures(given_paths)
