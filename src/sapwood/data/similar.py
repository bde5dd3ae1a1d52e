"""Names that people may have meant to be one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from sapwood.data.names import same_name_key

_MOST_EDITS = 2
_LETTERS_AN_EDIT = 3  # `cat` and `cow` are two names, `kestrel` and `kestral` probably one


def similar_names(new: Iterable[str], known: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs (new, known) that differ in case, spaces and signs only, or by one or two edits.

    An edit is a letter more, less or another, or two neighbours that changed places. One is allowed for every three
    letters; names whose numbers differ are never similar.

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
    """Letters to insert, remove or replace, or neighbours to swap, to turn one into the other, none touched twice.

    That is the optimal string alignment (Damerau 1964).

    >>> edit_distance("kitten", "sitting"), edit_distance("road", "raod")
    (3, 1)
    """
    before: list[int] = []
    row = list(range(len(two) + 1))
    for index, letter in enumerate(one, 1):
        last, row = row, [index]
        for column, other in enumerate(two, 1):
            best = min(last[column] + 1, row[column - 1] + 1, last[column - 1] + (letter != other))
            if index > 1 and column > 1 and letter == two[column - 2] and one[index - 2] == other:
                best = min(best, before[column - 2] + 1)
            row.append(best)
        before = last
    return row[-1]


def _key(name: str) -> str:
    """Without case, spaces and signs; a name of signs only stays as it is."""
    key = same_name_key(name)
    return "".join(mark for mark in key if mark.isalnum()) or key


def _numbers(key: str) -> list[str]:
    return re.findall(r"[0-9]+", key)
