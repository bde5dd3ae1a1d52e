"""Outlines that people drew, as annotation tools write them: COCO's JSON and labelme's."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sapwood.data.files import is_hidden
from sapwood.data.names import natural_key, shown
from sapwood.data.pictures import Picture
from sapwood.data.raster import paint_circle, paint_polygon, paint_runs, polygon_area, runs_of
from sapwood.errors import DataError

SOURCES = "expected a COCO file (*.json with images, annotations and categories) or a folder of labelme's *.json"


class Region(NamedTuple):
    """One outlined thing: the name that was given to it, its area in pixels, and what paints it on a mask."""

    name: str
    area: float
    paint: Callable[[np.ndarray, int], None]


@dataclass(frozen=True)
class Drawing:
    """A picture with its regions.

    Attributes:
        picture: where the pixels are.
        path: the picture's path below ``images`` in a folder with masks.
        size: (H, W) that the regions were drawn on.
        regions: in the order of the file.
    """

    picture: Picture
    path: PurePosixPath
    size: tuple[int, int]
    regions: tuple[Region, ...]


def read_drawings(source: Path) -> tuple[list[str], list[Drawing]]:
    """Names (COCO's in the file's order, labelme's in natural order) and drawings from ``source``.

    Raises:
        DataError: nothing of the known kinds is there; a file is broken or incomplete; a picture is missing; a region
            has no area, such as a point or a box without outline.
    """
    files = [source] if source.is_file() else _json_files(source)
    contents = [(file, _load(file)) for file in files]
    coco = [(file, content) for file, content in contents if _has(content, "images", "annotations", "categories")]
    labelme = [(file, content) for file, content in contents if _has(content, "shapes")]
    if len(coco) + bool(labelme) > 1:
        names = ", ".join(shown(file) for file, _ in coco + labelme[:1])
        raise DataError(f"{shown(source)}: holds several sets ({names}); name the one to convert")
    if coco:
        return _read_coco(*coco[0])
    if not labelme:
        raise DataError(f"{shown(source)}: holds no outlines; {SOURCES}")
    root = source if source.is_dir() else source.parent
    drawings = [_read_labelme(file, content, root) for file, content in labelme]
    return sorted({region.name for one in drawings for region in one.regions}, key=natural_key), drawings


def _json_files(folder: Path) -> list[Path]:
    found = [file for file in folder.rglob("*.json") if not any(map(is_hidden, file.relative_to(folder).parts))]
    return sorted(found, key=lambda file: natural_key(file.as_posix()))


def _load(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{shown(file)}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{shown(file)}: is not JSON ({shown(error)})") from error


def _has(content: Any, *keys: str) -> bool:
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in keys)


def _read_coco(file: Path, content: dict[str, Any]) -> tuple[list[str], list[Drawing]]:
    entry: Any = None
    try:
        names = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        if len(set(names.values())) < len(content["categories"]):
            raise DataError(f"{shown(file)}: two categories have one name or one id; rename one of them")
        regions: dict[Any, list[Region]] = {entry["id"]: [] for entry in content["images"]}
        if len(regions) < len(content["images"]):
            raise DataError(f"{shown(file)}: two pictures have one id; the file was joined wrongly")
        sizes = {entry["id"]: (int(entry["height"]), int(entry["width"])) for entry in content["images"]}
        for entry in content["annotations"]:
            where = f"{shown(file)}: annotation {shown(entry.get('id'))}"
            if entry["image_id"] not in regions or entry["category_id"] not in names:
                raise DataError(f"{where} is of a picture or category that the file does not list")
            region = _coco_region(entry, names[entry["category_id"]], sizes[entry["image_id"]], where)
            regions[entry["image_id"]].append(region)
        drawings = [
            Drawing(
                _found(file, entry["file_name"]),
                _below(file, entry["file_name"]),
                sizes[entry["id"]],
                tuple(regions[entry["id"]]),
            )
            for entry in content["images"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{shown(file)}: is not COCO's form at {shown(entry)[:80]} ({shown(repr(error))})") from error
    return list(names.values()), drawings


def _coco_region(entry: dict[str, Any], name: str, size: tuple[int, int], where: str) -> Region:
    outline = entry.get("segmentation")
    if not outline:
        raise DataError(f"{where} has no outline; a box alone does not say which pixels it means")
    if isinstance(outline, dict):
        counts = outline["counts"]
        runs = runs_of(counts) if isinstance(counts, str) else [int(run) for run in counts]
        if [int(side) for side in outline.get("size", size)] != list(size) or sum(runs) != math.prod(size):
            raise DataError(f"{where} has run lengths for another size than its picture's {size[1]} x {size[0]}")
        return Region(name, sum(runs[1::2]), lambda canvas, value: paint_runs(canvas, runs, value))
    polygons = [np.array(ring, np.float64).reshape(-1, 2) for ring in outline]
    return _polygons(polygons, name, where)


def _polygons(polygons: list[np.ndarray], name: str, where: str) -> Region:
    if any(len(ring) < 3 or not np.isfinite(ring).all() for ring in polygons):
        raise DataError(f"{where} ({shown(name)}) has an outline of fewer than three points")

    def paint(canvas: np.ndarray, value: int) -> None:
        for ring in polygons:
            paint_polygon(canvas, ring, value)

    return Region(name, sum(map(polygon_area, polygons)), paint)


def _below(file: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.name or ":" in path.parts[0]:
        raise DataError(f"{shown(file)}: {shown(name)!r} is not the name of a picture within its folder; rename it")
    return path


def _found(file: Path, name: str) -> Picture:
    below = _below(file, name)
    above = file.parent.parent
    part = file.stem.removeprefix("instances_")
    places = [file.parent, file.parent / "images", above / "images", above / part, above / "images" / part, above]
    for place in places:
        if (place / below).is_file():
            return Picture(str(place / below), place / below)
    first = ", ".join(shown(place) for place in places[:4])
    raise DataError(
        f"{shown(file)}: its picture {shown(name)} is in none of {first}; put the pictures into one of them"
    )


def _read_labelme(file: Path, content: dict[str, Any], root: Path) -> Drawing:
    try:
        size = (int(content["imageHeight"]), int(content["imageWidth"]))
        name = str(content["imagePath"]).replace("\\", "/")
        beside = file.parent / name
        if beside.is_file():
            picture = Picture(str(beside), beside)
        elif content.get("imageData"):
            picture = Picture(str(file), base64.b64decode(content["imageData"]))
        else:
            raise DataError(f"{shown(file)}: its picture {shown(name)} is not beside it; put it there")
        path = PurePosixPath(file.relative_to(root).with_suffix("").as_posix() + PurePosixPath(name).suffix)
        regions = tuple(_labelme_regions(file, content["shapes"]))
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise DataError(f"{shown(file)}: is not labelme's form ({shown(repr(error))})") from error
    return Drawing(picture, path, size, regions)


def _labelme_regions(file: Path, shapes: list[dict[str, Any]]) -> Iterator[Region]:
    for number, shape in enumerate(shapes, 1):
        where, name = f"{shown(file)}: shape {number}", str(shape["label"])
        points = np.array(shape["points"], np.float64).reshape(-1, 2)
        kind = shape.get("shape_type") or "polygon"
        if kind == "polygon":
            yield _polygons([points], name, where)
        elif kind == "rectangle" and len(points) in (2, 4):
            (left, top), (right, bottom) = points.min(0), points.max(0)
            yield _polygons([np.array([[left, top], [right, top], [right, bottom], [left, bottom]])], name, where)
        elif kind == "circle" and len(points) == 2:
            yield _circle(points[0].tolist(), math.dist(*points), name)
        elif kind == "mask" and shape.get("mask") and points.min() >= 0:
            yield _stamp(points, np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"])))) > 0, name)
        else:
            raise DataError(f"{where} ({shown(name)}) is a {shown(kind)}, which covers no pixels; outline it instead")


def _circle(centre: list[float], radius: float, name: str) -> Region:
    return Region(name, math.pi * radius**2, lambda canvas, value: paint_circle(canvas, centre, radius, value))


def _stamp(points: np.ndarray, inside: np.ndarray, name: str) -> Region:
    left, top = points[0].astype(int)

    def paint(canvas: np.ndarray, value: int) -> None:
        part = canvas[top : top + inside.shape[0], left : left + inside.shape[1]]
        part[inside[: part.shape[0], : part.shape[1]]] = value

    return Region(name, float(inside.sum()), paint)
