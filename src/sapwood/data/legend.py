"""What the values and colours of masks mean."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from sapwood.data.names import class_name, same_name_key, shown
from sapwood.errors import DataError

BACKGROUND = "background"
"""The name of what belongs to no class; always channel 0."""

IGNORE = 255
"""The target value of pixels that count nowhere; as a value in a mask it is always ignored."""

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Legend:
    """The class name of each value that masks hold.

    Attributes:
        names: value (0 to 255) to class name; ``BACKGROUND`` for background, None for ignored. 255 is ignored
            whether it is listed or not.
        colours: value of each RGB colour, for masks that are colour pictures; None: such masks are refused.
        by_colour: a palette mask means its colours (the legend was given as colour to name), not its indices.

    Raises:
        DataError: a value out of range, 255 with a name, a name that no class can have, a colour whose value has no
            meaning.

    >>> legend = Legend({0: "background", 1: "road", 2: "car", 11: None})
    >>> legend.classes
    ('road', 'car')
    >>> legend.keep({"car"}, "background").names
    {0: 'background', 1: 'background', 2: 'car', 11: None}
    """

    names: Mapping[int, str | None]
    colours: Mapping[Colour, int] | None = None
    by_colour: bool = False

    def __post_init__(self) -> None:
        for value, name in self.names.items():
            if not 0 <= value <= IGNORE:
                raise DataError(f"legend: value {value} of {shown(name)} does not fit a mask of 8 bits (0 to 255)")
            if value == IGNORE and name is not None:
                raise DataError(f"legend: value 255 always means ignored, got {shown(name)!r}; give it another value")
            if name not in (None, BACKGROUND) and same_name_key(class_name(name, "legend")) == BACKGROUND:
                raise DataError(f"legend: write {shown(name)!r} as {BACKGROUND!r} if that is meant, else rename it")
        for colour, value in (self.colours or {}).items():
            if value != IGNORE and value not in self.names:
                raise DataError(f"legend: colour {colour} stands for value {value}, which has no name")
        object.__setattr__(self, "names", dict(sorted(self.names.items())))
        if self.colours is not None:
            object.__setattr__(self, "colours", dict(self.colours))

    @property
    def classes(self) -> tuple[str, ...]:
        """The distinct names without background and ignored, in the order of their values."""
        return tuple(dict.fromkeys(name for name in self.names.values() if name not in (None, BACKGROUND)))

    def keep(self, classes: Collection[str], others: Literal["background", "ignore"]) -> Legend:
        """Only ``classes`` keep their names; the values of all other classes mean background or are ignored."""
        instead = BACKGROUND if others == "background" else None
        kept = {None, BACKGROUND, *classes}
        return replace(self, names={value: name if name in kept else instead for value, name in self.names.items()})

    def without_background(self) -> Legend:
        """What was background is ignored."""
        return replace(self, names={value: None if name == BACKGROUND else name for value, name in self.names.items()})

    def lookup(self, channels: Mapping[str, int], others: Literal["background", "ignore"] = "ignore") -> np.ndarray:
        """Table from the value in a mask to the target of training and evaluation.

        Args:
            channels: channel of each class; background is 0 whether it is listed or not.
            others: what a class that ``channels`` lacks becomes.

        Returns:
            uint8 [256]: ``channels[name]``, 0 for background, 255 for ignored values and values without a name.

        >>> Legend({0: "background", 4: "car", 7: "road"}).lookup({"road": 1})[[0, 4, 7, 255]].tolist()
        [0, 255, 1, 255]
        """
        table = np.full(256, IGNORE, np.uint8)
        missing = 0 if others == "background" else IGNORE
        for value, name in self.names.items():
            if name is not None:
                table[value] = 0 if name == BACKGROUND else channels.get(name, missing)
        return table

    def known_values(self) -> np.ndarray:
        """bool [256]: which values a mask may hold."""
        known = np.zeros(256, bool)
        known[[IGNORE, *self.names]] = True
        return known
