"""Labelled pictures from a CSV file with the columns ``path,label``."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from sapwood.data.file_pictures import FilePictures
from sapwood.data.names import class_name, shown
from sapwood.data.pictures import Pictures
from sapwood.errors import DataError

_COLUMNS = ("path", "label")


def read_table(file: Path) -> Pictures:
    """The rows of a CSV in UTF-8; paths are relative to its folder, other columns are passed over.

    Raises:
        DataError: not a CSV in UTF-8, a column is missing, a cell is empty, a file does not exist.
    """
    name = shown(file)
    if file.suffix.lower() != ".csv":
        raise DataError(f"{name}: is neither a folder nor a CSV file")
    rows = _rows(file)
    header = [cell.strip().casefold() for cell in next(rows, [])]
    missing = [column for column in _COLUMNS if column not in header]
    if missing:
        given = ", ".join(repr(shown(cell)) for cell in header) or "none"
        raise DataError(
            f"{name}: column {' and '.join(map(repr, missing))} is missing; "
            f"the first line must name path,label with commas (found: {given})"
        )
    at = [header.index(column) for column in _COLUMNS]
    absent: list[str] = []
    pictures = FilePictures(_files(file, rows, at, absent), str(file.parent))
    if absent:
        more = f", and {len(absent) - 3} more" if len(absent) > 3 else ""
        where = f"paths are relative to {shown(file.parent)}; mend them, or take the rows out"
        raise DataError(f"{name}: no such file: {', '.join(absent[:3])}{more}; {where}")
    return pictures


def _rows(file: Path) -> Iterator[list[str]]:
    name = shown(file)
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            yield from csv.reader(text, strict=True, skipinitialspace=True)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{name}: is not a CSV in UTF-8 ({shown(error)}); save it again as one") from error
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror})") from error


def _files(file: Path, rows: Iterable[list[str]], at: list[int], absent: list[str]) -> Iterator[tuple[str, str]]:
    """Path and class of each row; what is not there is added to ``absent``."""
    names: dict[str, str] = {}
    for number, row in enumerate(rows, 2):
        if not any(cell.strip() for cell in row):
            continue
        path, label = (row[column].strip() if column < len(row) else "" for column in at)
        if not path or not label:
            raise DataError(f"{shown(file)}, row {number}: {'path' if not path else 'label'} is empty")
        picture = str(file.parent / path)
        if "\0" in path or not os.path.isfile(picture):
            absent.append(f"{shown(path)} in row {number}")
        if label not in names:
            names[label] = class_name(label, f"{file}, row {number}")
        yield picture, names[label]
