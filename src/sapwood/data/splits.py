"""Which pictures are held out, and in which order classes are learned."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from sapwood.errors import ConfigError

SMALLEST_CLASS = 10
"""A class with fewer pictures gives none to validation."""


def validation_split(
    labels: Sequence[Hashable], fraction: float, seed: int, smallest: int = SMALLEST_CLASS
) -> tuple[list[int], list[int]]:
    """Stratified split of the training pictures; one class's choice does not depend on the other classes.

    A class of fewer than ``smallest`` pictures keeps all of them; a larger one gives ``fraction`` of its pictures
    (rounded, at least one, never all).

    Args:
        labels: the label of each picture.
        fraction: share held out, in [0, 1); 0 holds nothing out.
        seed: of the choice.
        smallest: pictures that a class must have to give any.

    Returns:
        Indices of the pictures to train on and of those held out, both ascending.

    >>> train, held = validation_split(["cat"] * 20 + ["dog"] * 9, 0.1, seed=0)
    >>> len(train), len(held), max(held) < 20
    (27, 2, True)
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"validation must be in [0, 1), got {fraction}")
    members: dict[Hashable, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        members[label].append(index)
    held: list[int] = []
    for label, indices in members.items():
        count = len(indices)
        if fraction == 0 or count < smallest:
            continue
        wanted = min(count - 1, max(1, int(fraction * count + 0.5)))
        order = _generator(seed, str(label)).permutation(count)
        held += [indices[position] for position in order[:wanted]]
    kept = set(range(len(labels))).difference(held)
    return sorted(kept), sorted(held)


def class_order(count: int, seed: int | None) -> list[int]:
    """Order in which ``count`` classes are learned.

    None is the natural order; a seed gives ``numpy.random.RandomState(seed).permutation(count)``, the convention of
    the published benchmarks (1993 is the usual seed).

    >>> class_order(4, None), class_order(100, 1993)[:5]
    ([0, 1, 2, 3], [68, 56, 78, 8, 23])
    """
    if seed is None:
        return list(range(count))
    return [int(index) for index in np.random.RandomState(seed).permutation(count)]


def task_sizes(classes: int, tasks: int) -> tuple[int, ...]:
    """How many classes each of ``tasks`` tasks has: equally many, the last task the rest.

    Where that would leave a task empty, the sizes differ by one at most.

    Raises:
        ConfigError: no task, or more tasks than classes.

    >>> task_sizes(10, 5), task_sizes(10, 4), task_sizes(10, 6)
    ((2, 2, 2, 2, 2), (3, 3, 3, 1), (2, 2, 2, 2, 1, 1))
    """
    if not 1 <= tasks <= classes:
        raise ConfigError(f"{classes} classes make 1 to {classes} tasks, got tasks={tasks}")
    most = -(-classes // tasks)
    rest = classes - (tasks - 1) * most
    if rest > 0:
        return (*[most] * (tasks - 1), rest)
    few, more = divmod(classes, tasks)
    return (*[few + 1] * more, *[few] * (tasks - more))


def _generator(*parts: object) -> np.random.Generator:
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest)))
