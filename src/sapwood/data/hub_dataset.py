"""Labelled pictures from a Hugging Face dataset saved to disk (extra ``datasets``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sapwood.data.names import shown
from sapwood.data.pictures import Picture, Pictures
from sapwood.errors import DataError

_LABEL_NAMES = ("label", "labels", "class", "fine_label")


def is_dataset(folder: Path) -> bool:
    """Whether the folder was written by ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk``."""
    single = (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    return single or (folder / "dataset_dict.json").is_file()


def dataset_splits(folder: Path) -> tuple[str, ...]:
    """The names of the splits as they were saved; empty for a single ``Dataset``."""
    file = folder / "dataset_dict.json"
    if not file.is_file():
        return ()
    try:
        return tuple(json.loads(file.read_text("utf-8"))["splits"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{shown(file)}: is not the list of splits of a saved dataset ({shown(error)})") from error


def read_dataset(folder: Path, splits: Mapping[str, str], wanted: str) -> Pictures:
    """The pictures of one split; bytes stay on disk until a picture is decoded.

    Args:
        folder: what ``save_to_disk`` wrote.
        splits: usual name of each name that a split may bear.
        wanted: the split's usual name; a dataset without splits is its own ``train``.

    Raises:
        DataError: the extra is not installed, the files are broken, there is no such split, no column of images,
            or no column of labels.
    """
    name = shown(folder)
    try:
        from datasets import DatasetDict, Image, load_from_disk
    except ImportError as error:
        raise DataError(f"{name}: is a Hugging Face dataset; to read it: pip install 'sapwood[datasets]'") from error
    try:
        dataset = load_from_disk(str(folder))
    except Exception as error:  # arrow and JSON readers raise their own kinds
        raise DataError(f"{name}: the saved dataset cannot be opened ({shown(error)})") from error
    if isinstance(dataset, DatasetDict):
        found = {splits.get(split.casefold(), split): dataset[split] for split in dataset}
        if wanted not in found:
            raise DataError(f"{name}: has no {wanted} split, only: {', '.join(map(shown, dataset))}")
        dataset = found[wanted]
    elif wanted != "train":
        raise DataError(f"{name}: has no {wanted} split; it was saved without splits")
    column = _image_column(dataset, name)
    labels = _labels(dataset, name)
    encoded = dataset.select_columns([column]).with_format(None).cast_column(column, Image(decode=False))
    return Pictures(
        Picture(f"{folder}[{index}]", partial(_fetch, encoded, column, index), label)
        for index, label in enumerate(labels)
    )


def _image_column(dataset: Any, name: str) -> str:
    for column, feature in dataset.features.items():
        if type(feature).__name__ == "Image":
            return str(column)
    raise DataError(f"{name}: has no column of images, only: {', '.join(map(shown, dataset.features))}")


def _labels(dataset: Any, name: str) -> list[str]:
    kinds = {column: type(feature).__name__ for column, feature in dataset.features.items()}
    candidates = [column for column in _LABEL_NAMES if column in kinds]
    candidates += [column for column, kind in kinds.items() if kind == "ClassLabel" and column not in candidates]
    if not candidates:
        raise DataError(f"{name}: has no column 'label', only: {', '.join(map(shown, kinds))}")
    column = candidates[0]
    values = list(dataset.with_format(None)[column])
    if any(value is None or value == -1 for value in values):
        raise DataError(f"{name}: some rows have no label (column {column!r} is empty or -1)")
    if kinds[column] == "ClassLabel":
        return [str(text) for text in dataset.features[column].int2str(values)]
    return [str(value) for value in values]


def _fetch(dataset: Any, column: str, index: int) -> bytes:
    value = dataset[index][column]
    if value is None:
        return b""
    return value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()
