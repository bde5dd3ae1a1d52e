"""Outlines become a folder that ``read_masks`` reads; what cannot be converted is said in one line."""

from __future__ import annotations

import base64
import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sapwood.data.masks import decode_mask, read_masks
from sapwood.data.polygons import convert
from sapwood.errors import DataError

BOX = [1, 0, 5, 0, 5, 4, 1, 4]


def picture(path: Path, size: tuple[int, int] = (8, 6), orientation: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size, "red").save(path, exif=exif)
    return path


def coco() -> dict[str, Any]:
    return {
        "images": [
            {"id": 5, "file_name": "a.jpg", "width": 8, "height": 6},
            {"id": 9, "file_name": "deep/b.jpg", "width": 8, "height": 6},
        ],
        "categories": [{"id": 3, "name": "road"}, {"id": 1, "name": "car"}, {"id": 7, "name": "void"}],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 1, "segmentation": [[2, 1, 4, 1, 4, 3, 2, 3]]},
            {"id": 2, "image_id": 5, "category_id": 3, "segmentation": [BOX, [6, 0, 8, 0, 8, 1, 6, 1]]},
            {
                "id": 3,
                "image_id": 5,
                "category_id": 7,
                "iscrowd": 1,
                "segmentation": {"size": [6, 8], "counts": [46, 2]},
            },
        ],
    }


def coco_folder(place: Path, content: Any, images: str = "images") -> Path:
    for name in ("a.jpg", "deep/b.jpg"):
        picture(place / images / name)
    place.mkdir(exist_ok=True)
    (place / "outlines.json").write_text(json.dumps(content))
    return place / "outlines.json"


# The car, drawn first, is the smaller one, and lies on the road; the last two pixels of the last column are void.
FIRST = [
    [0, 1, 1, 1, 1, 0, 1, 1],
    [0, 1, 2, 2, 1, 0, 0, 0],
    [0, 1, 2, 2, 1, 0, 0, 0],
    [0, 1, 1, 1, 1, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 0, 255],
    [0, 0, 0, 0, 0, 0, 0, 255],
]


def read(folder: Path) -> tuple[tuple[str, ...], list[str], list[list[list[int]]]]:
    found = read_masks(folder)
    names = [Path(one.name).relative_to(folder / "images").as_posix() for one in found]
    return found.classes, names, [decode_mask(one, found.legend, size=(6, 8)).tolist() for one in found]


@pytest.mark.parametrize("images", ["images", "", "../images", "../outlines", ".."])
def test_coco(tmp_path: Path, images: str) -> None:
    file = coco_folder(tmp_path / "set", coco(), images)
    steps: list[tuple[int, int]] = []
    done = convert(file, tmp_path / "out", progress=lambda *at: steps.append(at))
    assert done == (2, ("road", "car"))
    assert steps == [(1, 2), (2, 2)]
    classes, names, masks = read(tmp_path / "out")
    assert classes == ("road", "car")
    assert names == ["a.jpg", "deep/b.jpg"]
    assert masks == [FIRST, np.zeros((6, 8), int).tolist()]
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == {"background": 0, "road": 1, "car": 2}
    assert Image.open(tmp_path / "out" / "masks" / "a.png").mode == "P"
    copied = (tmp_path / "out" / "images" / "a.jpg").read_bytes()
    assert copied == (file.parent / images / "a.jpg").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_folder_with_one_coco_file(tmp_path: Path) -> None:
    coco_folder(tmp_path / "set", coco())
    (tmp_path / "set" / "settings.json").write_text("{}")
    (tmp_path / "out").mkdir()
    assert convert(str(tmp_path / "set"), str(tmp_path / "out")).pictures == 2
    (tmp_path / "set" / "again.json").write_text(json.dumps(coco()))
    with pytest.raises(DataError, match=r"holds several sets \(.*again\.json, .*outlines\.json\); name the one"):
        convert(tmp_path / "set", tmp_path / "other")


@pytest.mark.parametrize("images", ["../train", "../images/train"])
def test_coco_as_its_authors_lay_it_out(tmp_path: Path, images: str) -> None:
    file = coco_folder(tmp_path / "annotations", coco(), images)
    assert convert(file.rename(file.with_name("instances_train.json")), tmp_path / "out").pictures == 2


def test_run_lengths_are_painted_by_their_area_too(tmp_path: Path) -> None:
    """Void, with 47 of 48 pixels the largest, lies below the road and the car although it comes last in the file."""
    content = coco()
    content["annotations"][2]["segmentation"]["counts"] = [1, 47]
    convert(coco_folder(tmp_path / "set", content), tmp_path / "out")
    expected = np.where(np.array(FIRST) == 0, 255, np.array(FIRST))
    expected[0, 0] = 0
    assert read(tmp_path / "out")[2][0] == expected.tolist()


def test_compressed_run_lengths(tmp_path: Path) -> None:
    content = coco()
    content["annotations"][2]["segmentation"]["counts"] = "^12"  # 46 = 14 + 32, 2
    convert(coco_folder(tmp_path / "set", content), tmp_path / "out")
    assert read(tmp_path / "out")[2][0] == FIRST


def change(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def apply(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        if to is None:
            del content[path[-1]]
        else:
            content[path[-1]] = to

    return apply


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (change("annotations", 0, "segmentation", to=[]), "annotation 1 has no outline; a box alone"),
        (change("annotations", 0, "segmentation", to=[[1, 2, 3, 4]]), "annotation 1 (car) has an outline of fewer"),
        (change("annotations", 0, "segmentation", to=[[1, 2, 3]]), "is not COCO's form"),
        (change("annotations", 2, "segmentation", "counts", to=[4, 2]), "run lengths for another size than"),
        (change("annotations", 2, "segmentation", "size", to=[8, 6]), "run lengths for another size than"),
        (change("annotations", 2, "segmentation", "counts", to="5 2"), "is not COCO's form"),
        (change("annotations", 0, "image_id", to=77), "annotation 1 is of a picture or category that"),
        (change("annotations", 0, "category_id", to=77), "annotation 1 is of a picture or category that"),
        (change("annotations", 0, "category_id", to=None), "is not COCO's form"),
        (change("annotations", 0, to="x"), "is not COCO's form"),
        (change("categories", 1, "name", to="road"), "two categories have one name"),
        (change("categories", 1, "name", to="Road"), "in letter case only"),
        (change("categories", 1, "name", to="a/b"), "cannot be the name of a class"),
        (change("images", 1, "id", to=5), "two pictures have one id"),
        (change("images", 1, "file_name", to="c.jpg"), "its picture c.jpg is in none of"),
        (change("images", 1, "file_name", to="../c.jpg"), "is not the name of a picture within its folder"),
        (change("images", 1, "file_name", to="a.jpg"), "a.jpg and a.jpg have the same stem"),
        (change("images", 1, "width", to=9), "is 8 x 6 pixels upright, but its outlines were drawn on 9 x 6"),
        (change("images", to=[]), "annotation 1 is of a picture"),
        (change("annotations", to=None), "holds no outlines; expected a COCO file"),
    ],
)
def test_bad_coco(tmp_path: Path, fault: Callable[[dict[str, Any]], None], expected: str) -> None:
    content = copy.deepcopy(coco())
    fault(content)
    file = coco_folder(tmp_path / "set", content)
    with pytest.raises(DataError) as caught:
        convert(file, tmp_path / "out")
    assert expected in str(caught.value)
    assert str(caught.value).isprintable()
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_pictures_that_lie_on_their_side(tmp_path: Path) -> None:
    file = coco_folder(tmp_path / "set", coco())
    picture(tmp_path / "set" / "images" / "a.jpg", (6, 8), orientation=6)
    assert convert(file, tmp_path / "out").pictures == 2
    picture(tmp_path / "set" / "images" / "a.jpg", orientation=6)
    with pytest.raises(DataError, match="is 6 x 8 pixels upright, but its outlines were drawn on 8 x 6"):
        convert(file, tmp_path / "other")


def encoded(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def labelme(place: Path, stem: str, shapes: list[dict[str, Any]], **more: Any) -> None:
    content = {"imagePath": f"{stem}.jpg", "imageHeight": 6, "imageWidth": 8, "imageData": None, "shapes": shapes}
    place.mkdir(exist_ok=True)
    (place / f"{stem}.json").write_text(json.dumps(content | more))


def shape(label: str, kind: str, points: list[list[float]], **more: Any) -> dict[str, Any]:
    return {"label": label, "shape_type": kind, "points": points, "group_id": None, "flags": {}, **more}


def test_labelme(tmp_path: Path) -> None:
    place = tmp_path / "drawn"
    picture(place / "a.jpg")
    picture(tmp_path / "elsewhere" / "b.jpg")
    picture(place / "without.jpg")
    labelme(
        place,
        "a",
        [
            shape("car10", "circle", [[3, 2], [3, 3.1]]),
            shape("car9", "rectangle", [[5, 4], [1, 0]]),
            shape("__ignore__", "polygon", [[6, 0], [8, 0], [8, 1], [6, 1]]),
            shape("car10", "mask", [[7, 4], [7, 5]], mask=encoded(np.array([[True], [True]]))),
        ],
    )
    labelme(place, "b", [], imagePath="..\\elsewhere\\b.jpg")
    inside = io.BytesIO()
    Image.new("RGB", (8, 6)).save(inside, "JPEG")
    labelme(place, "c", [], imageData=base64.b64encode(inside.getvalue()).decode())
    assert convert(place, tmp_path / "out") == (3, ("car9", "car10"))
    classes, names, masks = read(tmp_path / "out")
    assert (classes, names) == (("car9", "car10"), ["a.jpg", "b.jpg", "c.jpg"])
    expected = np.array(FIRST)
    expected[0, 6:] = 255
    expected[4:, 7] = 2
    assert masks == [expected.tolist(), [[0] * 8] * 6, [[0] * 8] * 6]
    assert (tmp_path / "out" / "images" / "c.jpg").read_bytes() == inside.getvalue()


@pytest.mark.parametrize(
    ("shapes", "more", "expected"),
    [
        ([shape("car", "point", [[1, 1]])], {}, "shape 1 (car) is a point, which covers no pixels; outline it"),
        ([shape("car", "line", [[1, 1], [2, 2]])], {}, "is a line, which covers no pixels"),
        ([shape("car", "polygon", [[1, 1], [2, 2]])], {}, "shape 1 (car) has an outline of fewer than three points"),
        ([shape("car", "mask", [[1, 1]], mask="AAAA")], {}, "is not labelme's form"),
        ([{"points": []}], {}, "is not labelme's form"),
        ([], {}, "outlines no class"),
        ([shape("car", "circle", [[1, 1], [2, 2]])], {"imagePath": "no.jpg"}, "its picture no.jpg is not beside it"),
        ([shape("car", "circle", [[1, 1], [2, 2]])], {"imageWidth": 9}, "outlines were drawn on 9 x 6"),
        ([shape("car", "circle", [[1, 1], [2, 2]])], {"imageWidth": "x"}, "is not labelme's form"),
    ],
)
def test_bad_labelme(tmp_path: Path, shapes: list[dict[str, Any]], more: dict[str, Any], expected: str) -> None:
    picture(tmp_path / "drawn" / "a.jpg")
    labelme(tmp_path / "drawn", "a", shapes, **more)
    with pytest.raises(DataError) as caught:
        convert(tmp_path / "drawn", tmp_path / "out")
    assert expected in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["drawn"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    file = coco_folder(tmp_path / "set", coco())
    with pytest.raises(DataError, match="already exists"):
        convert(file, tmp_path / "set")
    with pytest.raises(DataError, match="no such file or folder"):
        convert(tmp_path / "none", tmp_path / "out")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match=r"broken\.json: is not JSON"):
        convert(tmp_path / "broken.json", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no outlines"):
        convert(tmp_path / "empty", tmp_path / "out")


def test_stopping_leaves_nothing_behind(tmp_path: Path) -> None:
    file = coco_folder(tmp_path / "set", coco())

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(file, tmp_path / "out", progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
