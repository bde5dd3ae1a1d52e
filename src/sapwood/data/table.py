"""Labelled pictures from a CSV file with the columns ``path,label``."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from sapwood.data.names import class_name, shown
from sapwood.data.pictures import Picture, Pictures
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
    try:
        text = file.read_bytes().decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{name}: is not a CSV in UTF-8 ({shown(error)}); save it again as one") from error
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror})") from error
    header = [cell.strip().casefold() for cell in rows[0]] if rows else []
    missing = [column for column in _COLUMNS if column not in header]
    if missing:
        given = ", ".join(repr(shown(cell)) for cell in header) or "none"
        raise DataError(
            f"{name}: column {' and '.join(map(repr, missing))} is missing; "
            f"the first line must name path,label with commas (found: {given})"
        )
    at = [header.index(column) for column in _COLUMNS]
    pictures: list[Picture] = []
    absent: list[str] = []
    for number, row in enumerate(rows[1:], 2):
        if not any(cell.strip() for cell in row):
            continue
        path, label = (row[column].strip() if column < len(row) else "" for column in at)
        if not path or not label:
            raise DataError(f"{name}, row {number}: {'path' if not path else 'label'} is empty")
        picture = file.parent / path
        if "\0" in path or not picture.is_file():
            absent.append(f"{shown(path)} in row {number}")
        pictures.append(Picture(str(picture), picture, class_name(label, f"{file}, row {number}")))
    if absent:
        more = f", and {len(absent) - 3} more" if len(absent) > 3 else ""
        where = f"paths are relative to {shown(file.parent)}"
        raise DataError(f"{name}: no such file: {', '.join(absent[:3])}{more}; {where}")
    return Pictures(pictures)
