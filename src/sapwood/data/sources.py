"""Labelled pictures from what people have: a class folder, a CSV, a Hugging Face dataset, a list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sapwood.data.file_pictures import FilePictures
from sapwood.data.files import PICTURE_SUFFIXES, folders_in, pictures_in
from sapwood.data.hub_dataset import dataset_splits, is_dataset, read_dataset
from sapwood.data.names import check_class_names, class_name, shown
from sapwood.data.pictures import Picture, Pictures, as_picture
from sapwood.data.shards import find_shards, read_shards
from sapwood.data.table import read_table
from sapwood.errors import DataError
from sapwood.paths import expanded

_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_MASK_LAYOUTS = ({"images", "masks"}, {"images", "labels"})
LAYOUT = (
    "expected FOLDER/<class>/*.jpg, a CSV with the columns path,label, WebDataset shards (.tar), or a saved Hugging "
    "Face dataset"
)


def read_data(data: Any, *, follow_splits: bool = True) -> Pictures:
    """Labelled pictures; nothing is decoded yet.

    Args:
        data: one of

            - a folder with one folder per class, pictures at any depth below (classes in natural order). Hidden
              files, and files without the suffix of a picture, are passed over;
            - a folder whose only folders are named train, val and test (or training, valid, validation, testing):
              its train part; ``read_split`` gives the others;
            - a CSV file with the columns ``path`` (relative to the file) and ``label``, classes in the order in
              which they appear;
            - WebDataset shards: a ``.tar`` file, several as ``train-{000..009}.tar``, or a folder of them (see
              ``sapwood.data.shards``);
            - a Hugging Face dataset written by ``save_to_disk`` (needs the extra ``datasets``); of several splits
              the train one;
            - ``Pictures``, or a list of pairs (picture, label), where a picture is a path, bytes, a Pillow image,
              an array or a tensor.
        follow_splits: False takes folders named train, val and test for classes.

    Raises:
        DataError: there is no such folder, it holds no classes, a class holds no pictures, a class has a name that
            is not allowed or the same name as another in other letter case, a CSV lacks a column or a file.
    """
    if isinstance(data, Pictures):
        return _checked(data, "the pictures given")
    if isinstance(data, str | Path):
        if shards := find_shards(data):
            return _checked(read_shards(shards), data)
        path = existing(data)
        if path.is_file():
            return _checked(read_table(path), path)
        if is_dataset(path):
            return _checked(read_dataset(path, _SPLITS, "train"), path)
        splits = split_folders(path) if follow_splits else {}
        if splits:
            return _checked(_read_classes(chosen_split(splits, "train", path)), path)
        return _checked(_read_classes(path), path)
    if isinstance(data, Iterable):
        return _checked(_read_pairs(data), "the list given")
    raise DataError(f"cannot read pictures from {type(data).__name__}; {LAYOUT}")


def read_split(data: str | Path, split: str) -> Pictures:
    """One part of data that comes in parts (a folder of splits, a saved ``DatasetDict``).

    Args:
        data: the folder.
        split: ``train``, ``val`` or ``test``, whatever the part is called on disk.

    Raises:
        DataError: the data has no parts, or not this one.
    """
    path, usual = existing(data), usual_split(split)
    if is_dataset(path):
        return _checked(read_dataset(path, _SPLITS, usual), path)
    splits = split_folders(path) if path.is_dir() else {}
    if not splits:
        raise DataError(f"{shown(path)}: has no parts; expected {shown(path)}/train and {shown(path)}/{split}")
    return _checked(_read_classes(chosen_split(splits, usual, path)), path)


def split_names(data: str | Path) -> tuple[str, ...]:
    """Which of train, val and test the data come in; empty if they do not come in parts."""
    if find_shards(data):
        return ()
    path = existing(data)
    if path.is_file():
        return ()
    if is_dataset(path):
        return tuple(_SPLITS.get(name.casefold(), name) for name in dataset_splits(path))
    return tuple(split_folders(path))


def has_splits(data: str | Path) -> bool:
    """Whether the data comes in parts named train, val and test."""
    return bool(split_names(data))


def list_pictures(paths: Iterable[str | Path]) -> Pictures:
    """Pictures without labels: files in the order given, a folder's files (at any depth) in natural order.

    Raises:
        DataError: a path does not exist, a folder holds no pictures, or nothing was given.
    """
    found: list[Picture] = []
    for given in paths:
        path = existing(given)
        if path.is_dir():
            inside = [Picture(str(file), file) for file in pictures_in(path)]
            if not inside:
                raise DataError(f"{shown(path)}: no pictures in this folder (looked for {_suffixes()})")
            found += inside
        else:
            found.append(Picture(str(given), path))
    if not found:
        raise DataError("no pictures given; name files or folders")
    return Pictures(found)


def existing(data: str | Path) -> Path:
    """The path; if nothing is there, an error that says so."""
    if not str(data):
        raise DataError(f"no data given; {LAYOUT}")
    path = expanded(data)
    try:
        there = path.exists()
    except (OSError, ValueError) as error:  # a name too long for the file system, or with a zero byte
        raise DataError(f"{shown(data)}: is not the name of a file or folder ({shown(error)})") from error
    if not there:
        raise DataError(f"no such file or folder: {shown(data)}")
    return path


def usual_split(name: str) -> str:
    """``train``, ``val`` or ``test`` for any name that such a part may bear."""
    if name not in _SPLITS:
        raise DataError(f"no split is called {name!r}; known: train, val, test")
    return _SPLITS[name]


def split_folders(folder: Path) -> dict[str, Path]:
    """Its parts by their usual names, or nothing if any sub-folder is something else."""
    found: dict[str, Path] = {}
    for child in folders_in(folder):
        usual = _SPLITS.get(child.name.casefold())
        if usual is None:
            return {}
        if usual in found:
            raise DataError(f"{shown(folder)}: {found[usual].name!r} and {child.name!r} are the same split; keep one")
        found[usual] = child
    return found


def chosen_split(splits: dict[str, Path], wanted: str, folder: Path) -> Path:
    """The folder of the part ``wanted`` (a usual name); without it, an error that lists those that there are."""
    if wanted not in splits:
        there = ", ".join(child.name for child in splits.values())
        raise DataError(f"{shown(folder)}: has no {wanted} split, only: {there}")
    return splits[wanted]


def _legend_in(folder: Path) -> str | None:
    """Name of the file that says what values in masks mean."""
    return next((name for name in ("classes.json", "classes.txt") if (folder / name).is_file()), None)


def _read_classes(folder: Path) -> Pictures:
    children = folders_in(folder)
    if not children:
        loose = sum(1 for _ in pictures_in(folder))
        what = f"holds {loose} loose pictures and no class folders" if loose else "holds no class folders"
        raise DataError(f"{shown(folder)}: {what}; {LAYOUT}")
    if {child.name.casefold() for child in children} in _MASK_LAYOUTS:
        raise DataError(f"{shown(folder)}: looks like pictures with masks, not like classes; {LAYOUT}")
    if "images" in {child.name.casefold() for child in children} and (legend := _legend_in(folder)):
        raise DataError(
            f"{shown(folder)}: has images/ and {legend}, as pictures with masks have, and no folder masks; rename the "
            "folder of masks to masks, or move that file away if these are class folders"
        )
    empty: list[str] = []

    def files() -> Iterator[tuple[str, str]]:
        for child in children:
            label, none = class_name(child.name, str(folder)), True
            for file in pictures_in(child):
                yield str(file), label
                none = False
            if none:
                empty.append(shown(child.name))

    pictures = FilePictures(files(), str(folder))
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        names = ", ".join(f"'{name}'" for name in empty[:5])
        raise DataError(
            f"{shown(folder)}: empty class folder: {names}{more}; add pictures ({_suffixes()}) or remove the folder"
        )
    return pictures


def _read_pairs(pairs: Iterable[Any]) -> Pictures:
    found: list[Picture] = []
    for number, pair in enumerate(pairs):
        if isinstance(pair, Picture):
            found.append(pair)
            continue
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[1], str):
            raise DataError(f"item {number} of the list given is not a pair (picture, label) with a text label")
        thing, label = pair
        name = None if isinstance(thing, str | Path | Picture) else f"item {number}"
        found.append(as_picture(thing, label=label, name=name))
    return Pictures(found)


def _checked(pictures: Pictures, where: object) -> Pictures:
    if not pictures:
        raise DataError(f"{shown(where)}: holds no pictures; {LAYOUT}")
    labels = pictures.labels
    without = [pictures[index].name for index, label in enumerate(labels) if label is None]
    if without:
        raise DataError(f"{shown(where)}: {len(without)} pictures have no label (first: {shown(without[0])})")
    composed = {label: class_name(label, str(where)) for label in pictures.classes}
    check_class_names(composed.values(), str(where))
    if all(label == name for label, name in composed.items()):
        return pictures
    return Pictures(Picture(one.name, one.source, composed[str(one.label)]) for one in pictures)


def _suffixes() -> str:
    return ", ".join(sorted(PICTURE_SUFFIXES))
