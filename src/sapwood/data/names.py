"""Names of classes and files: which are refused, which are the same, how they are sorted and shown."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from sapwood.errors import DataError

_NEVER = {"Cc", "Cs", "Zl", "Zp"}  # control characters, bytes that are not UTF-8, line and paragraph separators


def class_name(text: str, where: str, kind: str = "class") -> str:
    """``text`` in Unicode's composed form (NFC), if it can be the name of a class (or of another ``kind`` of thing).

    macOS stores decomposed names; without one common form the same folder would be another class there.

    Raises:
        DataError: empty, ``.``, ``..``, a path separator, a control or a line-breaking character, broken UTF-8.

    >>> class_name("St. Bernard", "dogs")
    'St. Bernard'
    """
    name = unicodedata.normalize("NFC", text)
    fault = None
    if not name.strip():
        fault = "it is empty"
    elif name.strip() in {".", ".."}:
        fault = "it means a folder, not a class"
    elif any(mark in name for mark in "/\\"):
        fault = "it holds a path separator"
    elif any(unicodedata.category(mark) in _NEVER for mark in name):
        fault = "it holds a control character or is not UTF-8"
    if fault:
        raise DataError(f"{shown(where)}: '{shown(text)}' cannot be the name of a {kind} ({fault}); rename it")
    return name


def same_name_key(name: str) -> str:
    """Equal for names that people would take for one: other letter case, other Unicode form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def check_class_names(names: Iterable[str], where: str, known: Iterable[str] = ()) -> None:
    """Refuse two classes whose names differ in letter case only.

    Args:
        names: the classes of the data.
        where: shown first in the message.
        known: the classes learned before; the new names are compared with these too.
    """
    first: dict[str, str] = {same_name_key(name): name for name in known}
    for name in names:
        other = first.setdefault(same_name_key(name), name)
        if other != name:
            raise DataError(
                f"{shown(where)}: class {name!r} differs from class {other!r} in letter case only; rename one of them"
            )


def natural_key(name: str) -> tuple[object, ...]:
    """Sort key that puts ``class2`` before ``class10``.

    >>> sorted(["b10", "a", "B2"], key=natural_key)
    ['a', 'B2', 'b10']
    """
    parts = re.split(r"([0-9]+)", name)
    numbers = tuple(int(part) if index % 2 else part.casefold() for index, part in enumerate(parts))
    return (numbers, name)


def shown(text: object) -> str:
    """``text`` on one line: what cannot be printed is escaped.

    >>> shown("a\\nb é")
    'a\\\\nb é'
    """
    return "".join(mark if mark.isprintable() else ascii(mark)[1:-1] for mark in str(text))
