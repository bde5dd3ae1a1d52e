"""Names to things: one registry per kind of part, each open to other packages by entry points."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Generic, NamedTuple, TypeVar

from sapwood.errors import ConfigError, UnknownName

T = TypeVar("T")


class Origin(NamedTuple):
    """Where an entry comes from.

    Attributes:
        package: name under which it is imported, ``__main__`` for a script.
        distribution: name and version of what was installed; None where no entry point led to it.
    """

    package: str
    distribution: tuple[str, str] | None = None


class Registry(Generic[T]):
    """Maps names to entries, refuses a second entry under one name, and lists its names in errors.

    Other packages add entries through the entry-point group ``sapwood.<plural>``; they are loaded when a name
    is first looked up that is not there, or when the names are listed.

    >>> heads = Registry("head", "heads")
    >>> @heads.register("flat")
    ... class Flat: ...
    >>> heads["flat"].__name__
    'Flat'
    >>> heads["flatt"]
    Traceback (most recent call last):
    ...
    sapwood.errors.UnknownName: no head 'flatt'. Did you mean 'flat'? Known heads: flat
    """

    def __init__(self, kind: str, plural: str) -> None:
        self.kind = kind
        self.plural = plural
        self._entries: dict[str, T] = {}
        self._outside_loaded = False
        self._origins: dict[str, Origin] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that adds an entry under ``name``."""

        def add(entry: T) -> T:
            self.add(name, entry)
            return entry

        return add

    def add(self, name: str, entry: T) -> None:
        """Add an entry; a name that is taken is refused with the module that took it."""
        if name in self._entries:
            owner = getattr(self._entries[name], "__module__", "sapwood")
            raise ConfigError(f"{self.kind} {name!r} is already registered by {owner}")
        self._entries[name] = entry

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            self._load_outside()
        if name not in self._entries:
            near = difflib.get_close_matches(name, self._entries, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UnknownName(f"no {self.kind} {name!r}.{hint} Known {self.plural}: {', '.join(sorted(self._entries))}")
        return self._entries[name]

    def origin(self, name: str) -> Origin:
        """The package that an entry is from."""
        entry = self[name]
        return self._origins.get(name) or Origin(getattr(entry, "__module__", "sapwood").partition(".")[0])

    def __contains__(self, name: object) -> bool:
        if name not in self._entries:
            self._load_outside()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self._load_outside()
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        self._load_outside()
        return len(self._entries)

    def _load_outside(self) -> None:
        if self._outside_loaded:
            return
        self._outside_loaded = True
        for point in entry_points(group=f"sapwood.{self.plural}"):
            if point.name in self._entries:
                continue
            try:
                self.add(point.name, point.load())
                made = (point.dist.name, point.dist.version) if point.dist else None
                self._origins[point.name] = Origin(point.module.partition(".")[0], made)
            except Exception as error:
                # Somebody else's package: its fault must not take the rest down, nor pass in silence.
                warnings.warn(f"{self.kind} {point.name!r} ({point.value}) cannot be loaded: {error}", stacklevel=3)
