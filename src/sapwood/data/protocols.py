"""The protocols of class-incremental segmentation: which pictures a round shows, and which of their labels.

Classes are positive numbers (channels: 1, 2, … in the order of arrival); 0 is background and 255 is ignored.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from sapwood.data.names import shown
from sapwood.errors import DataError
from sapwood.settings import check

ProtocolName = Literal["sequential", "disjoint", "overlapped"]
PROTOCOLS: tuple[ProtocolName, ...] = get_args(ProtocolName)

_NO_CLASS = frozenset({0, 255})


def steps_of(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Classes 1, 2, … cut into steps of the given sizes.

    Raises:
        ConfigError: no sizes, or one below 1.

    >>> steps_of([4, 3])
    [(1, 2, 3, 4), (5, 6, 7)]
    """
    check((bool(sizes) and min(sizes) >= 1, f"a split needs sizes >= 1, got {','.join(map(str, sizes)) or 'none'}"))
    ends = np.cumsum(sizes).tolist()
    return [tuple(range(end - size + 1, end + 1)) for size, end in zip(sizes, ends, strict=True)]


def select(labels: Sequence[Collection[int]], steps: Sequence[Collection[int]], protocol: str) -> list[list[int]]:
    """Which pictures each step shows (the two settings of MiB, arXiv 2002.00718, and its unmasked variant).

    A picture is shown in a step

    - overlapped: if it holds a class of the step;
    - disjoint, sequential: if moreover it holds no class of a later step. These two differ in ``annotated``.

    Neither background nor ignored pixels (0, 255) select or exclude a picture; a class that is in no step counts as
    one of a later step.

    Args:
        labels: the classes of each picture's whole mask.
        steps: the classes of each step.
        protocol: ``sequential``, ``disjoint`` or ``overlapped``.

    Returns:
        For each step indices into ``labels``, ascending.

    Raises:
        ConfigError: no such protocol; a class in two steps; a step without classes, or with 0 or 255 among them.

    >>> select([{0, 1}, {1, 2}, {2, 255}, {0}], [[1], [2]], "overlapped")
    [[0, 1], [1, 2]]
    >>> select([{0, 1}, {1, 2}, {2, 255}, {0}], [[1], [2]], "disjoint")
    [[0], [1, 2]]
    """
    _check(steps, protocol)
    chosen: list[list[int]] = []
    allowed = set(_NO_CLASS)
    for step in map(frozenset, steps):
        allowed |= step
        shows = [index for index, present in enumerate(labels) if not step.isdisjoint(present)]
        if protocol != "overlapped":
            shows = [index for index in shows if allowed.issuperset(labels[index])]
        chosen.append(shows)
    return chosen


def annotated(steps: Sequence[Collection[int]], step: int, protocol: str) -> tuple[int, ...]:
    """The classes whose pixels keep their label in the training masks of a step; all others become background.

    Args:
        steps: the classes of each step.
        step: position in ``steps``.
        protocol: ``sequential`` keeps the old classes too, ``disjoint`` and ``overlapped`` only the new ones.

    Returns:
        Ascending.

    >>> annotated([[1, 2], [3]], 1, "overlapped"), annotated([[1, 2], [3]], 1, "sequential")
    ((3,), (1, 2, 3))
    """
    _check(steps, protocol)
    first = 0 if protocol == "sequential" else step
    return tuple(sorted(one for part in steps[first : step + 1] for one in part))


def read_partition(folder: Path, steps: int, pictures: int) -> list[list[int]]:
    """Fixed lists of the pictures of each step, where no rule gives them again (MiB's "disjoint" split of ADE20K).

    Args:
        folder: holds ``train-0.npy``, ``train-1.npy``, …: integers [n], positions in the sorted list of training
            pictures.
        steps: how many lists.
        pictures: how many training pictures there are.

    Raises:
        DataError: a list is missing or is not one, or names a picture that is not there or already in another list.
    """
    taken = np.zeros(pictures, bool)
    lists: list[list[int]] = []
    for step in range(steps):
        file = folder / f"train-{step}.npy"
        if not file.is_file():
            raise DataError(
                f"{shown(file)}: no such list; a partition cannot be computed from the masks: "
                f"put train-0.npy to train-{steps - 1}.npy, as MiB ships them, into one folder"
            )
        try:
            positions = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{shown(file)}: is not an array of integers ({shown(error)})") from error
        if positions.ndim != 1 or positions.dtype.kind not in "iu" or not positions.size:
            raise DataError(f"{shown(file)}: expected integers [n], got {positions.dtype} {list(positions.shape)}")
        if strange := [one for one in positions.tolist() if not 0 <= one < pictures]:
            raise DataError(f"{shown(file)}: names picture {strange[0]}, but there are {pictures}, the first being 0")
        if taken[positions].any() or len(np.unique(positions)) < len(positions):
            raise DataError(f"{shown(file)}: names a picture twice, or one of an earlier list; lists must not overlap")
        taken[positions] = True
        lists.append(sorted(positions.tolist()))
    return lists


def _check(steps: Sequence[Collection[int]], protocol: str) -> None:
    flat = [one for step in steps for one in step]
    check(
        (protocol in PROTOCOLS, f"no protocol {protocol!r}; known: {', '.join(PROTOCOLS)}"),
        (all(len(step) for step in steps), "every step needs classes"),
        (_NO_CLASS.isdisjoint(flat), "0 is background and 255 is ignored: neither is a class of a step"),
        (len(set(flat)) == len(flat), "a class belongs to one step only"),
    )


def check_request(name: str, most: int, keep: int | None, protocol: str, every: int) -> None:
    """Refuse what a benchmark of ``most`` tasks cannot do.

    Raises:
        ConfigError: ``keep`` is not among 1..most, no such protocol, ``every`` below 1.
    """
    check(
        (keep is None or 1 <= keep <= most, f"{name} has {most} tasks, got keep={keep}"),
        (protocol in PROTOCOLS, f"no protocol {protocol!r}; known: {', '.join(PROTOCOLS)}"),
        (every >= 1, f"every must be >= 1, got {every}"),
    )
