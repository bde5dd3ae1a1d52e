"""``classes.json`` and ``classes.txt``: what a person writes down about the values in masks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sapwood.data.legend import BACKGROUND, IGNORE, Colour, Legend
from sapwood.data.names import check_class_names, class_name, shown
from sapwood.errors import DataError

_BACKGROUND_NAMES = {"background", "bg"}
_IGNORED_NAMES = {"void", "ignore", "ignored", "unlabelled", "unlabeled"}
_FORMS = (
    'write {"background": 0, "road": 1} (name to value), ["background", "road"] (in value order) '
    'or {"#000000": "background", "#ff0000": "road"} (colour to name)'
)


def meaning(name: str, where: str) -> str | None:
    """The class that a name in a file stands for: ``BACKGROUND``, None for ignored, else the name itself.

    ``background`` and ``bg`` are background; ``void``, ``ignore``, ``unlabelled`` and ``unlabeled`` are ignored; in any
    letter case, with or without underscores around them.

    >>> meaning("_background_", "classes.txt"), meaning("Void", "classes.txt"), meaning("road", "classes.txt")
    ('background', None, 'road')
    """
    plain = name.strip(" _").casefold()
    if plain in _BACKGROUND_NAMES:
        return BACKGROUND
    return None if plain in _IGNORED_NAMES else class_name(name, where)


def read_legend(*folders: Path) -> Legend:
    """The legend in the first of ``folders`` that has one.

    ``classes.json`` holds one of

    - name to value: ``{"background": 0, "road": 1}``; value to name, ``{"0": "background", "1": "road"}``, too;
    - the names in value order: ``["background", "road"]``;
    - colour to name: ``{"#000000": "background", "255,0,0": "road"}``; a class's value is its place in the file;
    - ``{"classes": [...], "void_index": 11, "palette": [[128, 128, 128], ...]}``: names in value order, an ignored
      value, and the colours of all values.

    ``classes.txt`` holds one name a line in value order.

    Raises:
        DataError: no file; not one of these forms; a value with two names or a name with two values; a value beyond
            8 bits; a name that is not allowed.
    """
    for folder in folders:
        if (file := folder / "classes.json").is_file():
            return parse_legend(_load(file), str(file))
        if (file := folder / "classes.txt").is_file():
            return _listed([line.strip() for line in _text(file).splitlines()], str(file))
    raise DataError(
        f"{shown(folders[0])}: has no classes.json or classes.txt, so that the values in its masks mean nothing; "
        f"{_FORMS} to classes.json, or one name a line, value 0 first, to classes.txt"
    )


def parse_legend(content: Any, where: str) -> Legend:
    """The legend in the decoded content of a ``classes.json``; ``where`` begins messages."""
    if isinstance(content, list):
        return _listed(content, where)
    if not isinstance(content, dict) or not content:
        raise DataError(f"{shown(where)}: {_FORMS}")
    if isinstance(content.get("classes"), list):
        return _listed(content["classes"], where, content.get("void_index"), content.get("palette"))
    if all(type(value) is int for value in content.values()):
        return _legend(((value, name) for name, value in content.items()), where)
    if all(isinstance(value, str) for value in content.values()):
        if all(re.fullmatch("[0-9]+", key) for key in content):
            return _legend(((int(key), name) for key, name in content.items()), where)
        return _coloured(content, where)
    raise DataError(f"{shown(where)}: mixes forms; {_FORMS}")


def _listed(names: list[Any], where: str, void: Any = None, palette: Any = None) -> Legend:
    if names and names[0] == "__ignore__":  # labelme's list begins with the value -1
        names = names[1:]
    entries = list(enumerate(names))
    if void is not None:
        if type(void) is not int:
            raise DataError(f"{shown(where)}: void_index must be a value of the masks, got {shown(void)}")
        if not (void < len(names) and isinstance(names[void], str) and meaning(names[void], where) is None):
            entries.append((void, "void"))
    legend = _legend(entries, where)
    if palette is None:
        return legend
    try:
        colours = [tuple(int(part) for part in colour) for colour in palette]
    except (TypeError, ValueError):
        colours = [()]
    if not all(len(colour) == 3 and all(0 <= part <= 255 for part in colour) for colour in colours):
        raise DataError(f"{shown(where)}: palette must be a list of colours [red, green, blue], 0 to 255 each")
    pairs = [((red, green, blue), value) for value, (red, green, blue) in enumerate(colours) if value in legend.names]
    return Legend(legend.names, _distinct(pairs, where))


def _coloured(names: dict[str, str], where: str) -> Legend:
    pairs = [(_colour(text, where), value) for value, text in enumerate(names)]
    legend = _legend(enumerate(names.values()), where)
    return Legend(legend.names, _distinct(pairs, where), by_colour=True)


def _colour(text: str, where: str) -> Colour:
    if found := re.fullmatch(r"\s*#?([0-9a-fA-F]{6})\s*", text):
        red, green, blue = bytes.fromhex(found[1])
        return red, green, blue
    parts = [part.strip() for part in text.strip().strip("()[]").split(",")]
    if len(parts) == 3 and all(re.fullmatch("[0-9]{1,3}", part) and int(part) <= 255 for part in parts):
        return int(parts[0]), int(parts[1]), int(parts[2])
    raise DataError(f"{shown(where)}: {shown(text)!r} is neither a colour (#ff0000 or 255,0,0) nor a value; {_FORMS}")


def _distinct(pairs: list[tuple[Colour, int]], where: str) -> dict[Colour, int]:
    colours: dict[Colour, int] = {}
    for colour, value in pairs:
        if colours.setdefault(colour, value) != value:
            raise DataError(f"{shown(where)}: colour {','.join(map(str, colour))} is given two names; keep one of them")
    return colours


def _legend(entries: Iterable[tuple[int, Any]], where: str) -> Legend:
    names: dict[int, str | None] = {}
    given: dict[int, str] = {}
    values: dict[str, int] = {}
    for value, text in entries:
        if not isinstance(text, str):
            raise DataError(f"{shown(where)}: {shown(text)!r} is not a name; {_FORMS}")
        if not 0 <= value <= IGNORE:
            raise DataError(f"{shown(where)}: value {value} of {shown(text)!r} is not within 0 to 255")
        name = meaning(text, where)
        if value == IGNORE and name is not None:
            raise DataError(
                f"{shown(where)}: value 255 always means ignored, got {shown(text)!r}; give it another value"
            )
        if value in given:
            both = f"{shown(given[value])!r} and {shown(text)!r}"
            raise DataError(f"{shown(where)}: value {value} is given two names, {both}; keep one of them")
        if name is not None and name in values:
            raise DataError(
                f"{shown(where)}: {shown(name)!r} is given two values, {values[name]} and {value}; keep one of them"
            )
        names[value], given[value] = name, text
        if name is not None:
            values[name] = value
    check_class_names(values, where)
    if not values.keys() - {BACKGROUND}:
        raise DataError(f"{shown(where)}: names no class; {_FORMS}")
    return Legend(names)


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig").rstrip()
    except UnicodeDecodeError as error:
        raise DataError(f"{shown(file)}: is not UTF-8 ({shown(error)}); save it again as UTF-8") from error
    except OSError as error:
        raise DataError(f"{shown(file)}: cannot be read ({error.strerror})") from error


def _load(file: Path) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise DataError(f"{shown(file)}: {shown(key)!r} is listed twice; keep one of them")
            found[key] = value
        return found

    try:
        return json.loads(_text(file), object_pairs_hook=unique)
    except ValueError as error:
        raise DataError(f"{shown(file)}: is not JSON ({shown(error)}); {_FORMS}") from error
