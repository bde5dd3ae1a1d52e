"""From outlines to a folder of pictures and masks."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sapwood.data.annotations import Drawing, read_drawings
from sapwood.data.decode import read_content, upright_size
from sapwood.data.files import PICTURE_SUFFIXES
from sapwood.data.legend import BACKGROUND, IGNORE
from sapwood.data.legend_file import meaning
from sapwood.data.names import check_class_names, shown
from sapwood.data.palette import write_mask
from sapwood.data.sources import existing
from sapwood.errors import DataError


class Converted(NamedTuple):
    """What ``convert`` wrote."""

    pictures: int
    classes: tuple[str, ...]


def convert(source: str | Path, out: str | Path, *, progress: Callable[[int, int], None] | None = None) -> Converted:
    """Write outlines as ``out/images``, ``out/masks`` (palette PNG) and ``out/classes.json``, for ``read_masks``.

    Background is 0; the classes follow from 1 on, COCO's in the order of its categories, labelme's in natural order.
    Regions are painted from the largest to the smallest, so that a small one on a large one stays. Names such as
    ``void`` or ``__ignore__`` become 255. COCO's outlines may be polygons or run lengths (compressed or not);
    labelme's shapes polygons, rectangles, circles or masks. Pictures without outlines are all background; pictures
    that no file mentions are left out. ``out`` is there whole or not at all.

    Args:
        source: a COCO file beside its pictures (in the same folder, in ``images``, or in ``images`` or a folder of
            the part's name one level up), or a folder with one such file, or a folder of labelme files.
        out: a folder that does not exist yet, or is empty.
        progress: called with (done, total) after each picture.

    Raises:
        DataError: nothing to convert, a broken file, a missing picture, a picture of another size than its file says,
            a region without area, ``out`` is not empty.
    """
    path, target = existing(source), Path(out).expanduser().resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{shown(target)}: already exists; name a folder that does not")
    names, drawings = read_drawings(path)
    if not drawings:
        raise DataError(f"{shown(path)}: lists no pictures")
    values, places = _values(names, str(path))
    _check_stems(drawings, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}-{os.getpid()}")
    try:
        aside.mkdir()
        for number, drawing in enumerate(drawings, 1):
            _write(drawing, values, aside)
            if progress is not None:
                progress(number, len(drawings))
        legend = {BACKGROUND: 0} | places
        (aside / "classes.json").write_text(json.dumps(legend, ensure_ascii=False, indent=1) + "\n", "utf-8")
        if target.exists():
            target.rmdir()
        os.replace(aside, target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return Converted(len(drawings), tuple(places))


def _values(names: list[str], where: str) -> tuple[dict[str, int], dict[str, int]]:
    """Value of each given name (0 background, 255 ignored), and of each class that they mean: 1, 2, …"""
    meanings = {name: meaning(name, where) for name in names}
    classes = dict.fromkeys(name for name in meanings.values() if name not in (None, BACKGROUND))
    check_class_names(classes, where)
    if not classes:
        raise DataError(f"{shown(where)}: outlines no class")
    if len(classes) >= IGNORE:
        raise DataError(f"{shown(where)}: {len(classes)} classes do not fit into masks of 8 bits (at most 254)")
    places = {name: value for value, name in enumerate(classes, 1)}
    return {name: IGNORE if means is None else places.get(means, 0) for name, means in meanings.items()}, places


def _check_stems(drawings: list[Drawing], source: Path) -> None:
    seen: dict[str, Drawing] = {}
    for drawing in drawings:
        if drawing.path.suffix.lower() not in PICTURE_SUFFIXES:
            raise DataError(f"{shown(source)}: {shown(drawing.path)} has not the suffix of a picture")
        other = seen.setdefault(drawing.path.with_suffix("").as_posix(), drawing)
        if other is not drawing:
            raise DataError(
                f"{shown(source)}: {shown(other.path)} and {shown(drawing.path)} have the same stem; rename one of them"
            )


def _write(drawing: Drawing, values: dict[str, int], folder: Path) -> None:
    height, width = drawing.size
    found = upright_size(drawing.picture)
    if found != drawing.size:
        raise DataError(
            f"{shown(drawing.picture.name)}: is {found[1]} x {found[0]} pixels upright, but its outlines were drawn on "
            f"{width} x {height}; give it the size and orientation that it had then"
        )
    mask = np.zeros((height, width), np.uint8)
    for region in sorted(drawing.regions, key=lambda region: -region.area):
        region.paint(mask, values[region.name])
    image, painted = folder / "images" / drawing.path, folder / "masks" / drawing.path.with_suffix(".png")
    for place in (image, painted):
        place.parent.mkdir(parents=True, exist_ok=True)
    content = read_content(drawing.picture)
    assert isinstance(content, bytes)
    image.write_bytes(content)
    write_mask(painted, mask)
