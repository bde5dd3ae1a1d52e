"""Names that people may have meant to be one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from sapwood.data.names import same_name_key

_MOST_EDITS = 2
_LETTERS_AN_EDIT = 3  # `cat` and `cow` are two names, `kestrel` and `kestral` probably one


def similar_names(new: Iterable[str], known: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs (new, known) that differ in case, spaces and signs only, or by one or two letters.

    An edit is allowed for every three letters; names whose numbers differ are never similar.

    >>> list(similar_names(["Kestral", "class 2", "St_Bernard", "cat"], ["kestrel", "class 1", "st. bernard", "cow"]))
    [('Kestral', 'kestrel'), ('St_Bernard', 'st. bernard')]
    """
    keys = [_key(name) for name in known]
    letters = [frozenset(key) for key in keys]
    for name in new:
        key = _key(name)
        own = frozenset(key)
        for other, other_key, other_letters in zip(known, keys, letters, strict=True):
            allowed = min(_MOST_EDITS, max(len(key), len(other_key)) // _LETTERS_AN_EDIT)
            # An edit changes at most two of the letters that occur: cheap, and it spares nearly all of the rest.
            if other == name or len(own ^ other_letters) > 2 * allowed or _numbers(key) != _numbers(other_key):
                continue
            if edit_distance(key, other_key) <= allowed:
                yield name, other


def edit_distance(one: str, two: str) -> int:
    """Letters to insert, remove or replace to turn one into the other (Levenshtein, 1966).

    >>> edit_distance("kitten", "sitting")
    3
    """
    row = list(range(len(two) + 1))
    for index, letter in enumerate(one, 1):
        above, row[0] = row[0], index
        for column, other in enumerate(two, 1):
            above, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, above + (letter != other))
    return row[-1]


def _key(name: str) -> str:
    """Without case, spaces and signs; a name of signs only stays as it is."""
    key = same_name_key(name)
    return "".join(mark for mark in key if mark.isalnum()) or key


def _numbers(key: str) -> list[str]:
    return re.findall(r"[0-9]+", key)
