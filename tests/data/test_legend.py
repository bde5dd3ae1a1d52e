"""Legends: what classes.json and classes.txt may say, what is refused, and the tables that come of it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sapwood.data.legend import BACKGROUND, IGNORE, Legend
from sapwood.data.legend_file import parse_legend, read_legend
from sapwood.errors import DataError

STREET = {0: BACKGROUND, 1: "road", 2: "car"}


def write(folder: Path, content: object, name: str = "classes.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text, "utf-8")
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_legend(folder)
    message = str(caught.value)
    assert message.isprintable()
    return message


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"background": 0, "road": 1, "car": 2}, STREET),
        ({"car": 2, "BG": 0, "road": 1}, STREET),
        (["_background_", "road", "car"], STREET),
        ({"0": "Background", "2": "car", "1": "road"}, STREET),
        ({"classes": ["background", "road", "car"]}, STREET),
        (["road", "Void", "car", "Unlabelled"], {0: "road", 1: None, 2: "car", 3: None}),
        ({"road": 7, "ignore": 255, "unlabeled": 3}, {3: None, 7: "road", 255: None}),
        ({"classes": 1, "road": 2}, {1: "classes", 2: "road"}),
        ({"classes": ["road", "car"], "void_index": 2}, {0: "road", 1: "car", 2: None}),
        ({"classes": ["road", "void"], "void_index": 1}, {0: "road", 1: None}),
    ],
)
def test_forms_of_classes_json(tmp_path: Path, content: object, names: dict[int, str | None]) -> None:
    legend = read_legend(write(tmp_path, content))
    assert (dict(legend.names), legend.colours, legend.by_colour) == (names, None, False)
    assert list(legend.names) == sorted(names)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("background\nroad\ncar\n", STREET),
        ("\ufeffbackground\r\n  road \r\ncar\r\n\r\n", STREET),
        ("__ignore__\n_background_\nroad\ncar", STREET),
        ("road\nignore\n", {0: "road", 1: None}),
    ],
    ids=["plain", "windows", "labelme", "ignored"],
)
def test_forms_of_classes_txt(tmp_path: Path, text: str, names: dict[int, str | None]) -> None:
    write(tmp_path, "", "classes.txt")
    (tmp_path / "classes.txt").write_bytes(text.encode())
    assert read_legend(tmp_path).names == names


def test_colours_as_a_table(tmp_path: Path) -> None:
    legend = read_legend(write(tmp_path, {"#000000": "background", "255, 0,0": "road", "(0,255,16)": "void"}))
    assert legend.names == {0: BACKGROUND, 1: "road", 2: None}
    assert legend.colours == {(0, 0, 0): 0, (255, 0, 0): 1, (0, 255, 16): 2}
    assert legend.by_colour


def test_camvid(shared_data: Path) -> None:
    legend = read_legend(shared_data / "camvid")
    assert legend.classes[:3] == ("Sky", "Building", "Pole")
    assert len(legend.classes) == 11
    assert legend.names[11] is None
    assert BACKGROUND not in legend.names.values()
    assert legend.colours is not None
    assert legend.colours[(128, 64, 128)] == 3
    assert not legend.by_colour


def test_the_first_folder_with_a_file_counts(tmp_path: Path) -> None:
    upper = write(tmp_path, {"road": 1})
    lower = tmp_path / "train"
    lower.mkdir()
    assert read_legend(lower, upper).classes == ("road",)
    write(lower, {"car": 1})
    assert read_legend(lower, upper).classes == ("car",)


def test_no_file_says_what_to_write(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path}: has no classes.json or classes.txt")
    assert '{"background": 0, "road": 1}' in message
    assert "one name a line" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"road": 1, "car": 1}, "value 1 is given two names, 'road' and 'car'"),
        ('{"road": 1, "road": 2}', "'road' is listed twice"),
        ('{"#ff0000": "road", "#ff0000": "car"}', "'#ff0000' is listed twice"),
        ({"#ff0000": "road", "255,0,0": "car"}, "colour 255,0,0 is given two names"),
        ({"#ff0000": "road", "#00ff00": "road"}, "'road' is given two values, 0 and 1"),
        (["road", "car", "road"], "'road' is given two values, 0 and 2"),
        ({"bg": 0, "background": 1, "road": 2}, "'background' is given two values, 0 and 1"),
        ({"Road": 1, "road": 2}, "differs from class 'Road' in letter case only"),
        ({"road": 255}, "value 255 always means ignored, got 'road'"),
        ({"road": 300}, "value 300 of 'road' is not within 0 to 255"),
        ({"road": -1}, "value -1 of 'road' is not within 0 to 255"),
        ({"a/b": 1}, "'a/b' cannot be the name of a class (it holds a path separator)"),
        (["background", ""], "it is empty"),
        (["background", 3], "'3' is not a name"),
        ({"background": 0}, "names no class"),
        ({"void": 0}, "names no class"),
        ([], "names no class"),
        ({}, "write {"),
        ("3", "write {"),
        ({"road": "1", "car": 2}, "mixes forms"),
        ({"road": True}, "mixes forms"),
        ({"road": "red"}, "'road' is neither a colour"),
        ({"300,0,0": "road"}, "'300,0,0' is neither a colour"),
        ("{", "is not JSON"),
        ({"classes": ["road"], "void_index": "1"}, "void_index must be a value"),
        ({"classes": ["road", "car"], "void_index": 1}, "value 1 is given two names, 'car' and 'void'"),
        ({"classes": ["road"], "palette": [[1, 2]]}, "palette must be a list of colours"),
        ({"classes": ["road"], "palette": 5}, "palette must be a list of colours"),
        ({"classes": ["road", "car"], "palette": [[1, 2, 3], [1, 2, 3]]}, "colour 1,2,3 is given two names"),
    ],
)
def test_bad_files(tmp_path: Path, content: object, expected: str) -> None:
    message = refusal(write(tmp_path, content))
    assert message.startswith(f"{tmp_path / 'classes.json'}: ")
    assert expected in message


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes(b"stra\xdfe\n")
    assert "is not UTF-8" in refusal(tmp_path)


@pytest.mark.parametrize("content", [{0: "x", 300: "y"}, {-1: "x"}, {255: "road"}])
def test_a_legend_fits_eight_bits(content: dict[int, Any]) -> None:
    with pytest.raises(DataError, match="legend: value"):
        Legend(content)


@pytest.mark.parametrize("name", ["", "x\ny", "\ud800", "Background", "a/b"])
def test_a_legend_names_classes(name: str) -> None:
    with pytest.raises(DataError, match=r"legend: (write 'Background' as|'.*' cannot be the name of a class)"):
        Legend({0: BACKGROUND, 1: name})


def test_a_colour_needs_a_meaning() -> None:
    with pytest.raises(DataError, match="stands for value 4"):
        Legend({0: "road"}, {(1, 2, 3): 4})


def test_lookup() -> None:
    legend = Legend({0: BACKGROUND, 2: "car", 3: "road", 9: None})
    table = legend.lookup({"road": 1, "tree": 2})
    assert (table.dtype, table.shape) == (np.uint8, (256,))
    assert table[[0, 2, 3, 9, 255, 100]].tolist() == [0, IGNORE, 1, IGNORE, IGNORE, IGNORE]
    assert legend.lookup({"background": 0, "road": 1}, others="background")[[0, 2, 3, 9]].tolist() == [0, 0, 1, 255]


def test_keep_and_without_background() -> None:
    legend = parse_legend(["background", "road", "car", "void"], "here")
    assert legend.keep(["car"], "ignore").names == {0: BACKGROUND, 1: None, 2: "car", 3: None}
    kept = legend.keep(["car"], "background")
    assert kept.names == {0: BACKGROUND, 1: BACKGROUND, 2: "car", 3: None}
    assert kept.classes == ("car",)
    assert legend.classes == ("road", "car")
    assert kept.without_background().names == {0: None, 1: None, 2: "car", 3: None}
    coloured = parse_legend({"#ff0000": "road", "#00ff00": "car"}, "here").keep(["car"], "background")
    assert coloured.by_colour
    assert coloured.colours == {(255, 0, 0): 0, (0, 255, 0): 1}


def test_legends_are_equal_by_meaning_and_travel() -> None:
    one, other = Legend({2: "car", 0: BACKGROUND}), Legend({0: BACKGROUND, 2: "car"})
    assert one == other
    assert one != Legend({0: BACKGROUND, 2: "cart"})
    assert pickle.loads(pickle.dumps(one)) == one
    source = {1: "road"}
    legend = Legend(source)
    source[2] = "car"
    assert legend.classes == ("road",)
