"""Where long work reports how far it is; the library is silent unless somebody listens."""

from __future__ import annotations


class Progress:
    """Listens to nothing. The command line passes one that draws a bar."""

    def note(self, text: str) -> None:
        """One line worth reading."""

    def start(self, what: str, total: int, done: int = 0) -> None:
        """A piece of work of ``total`` units begins."""

    def advance(self, units: int, **facts: float) -> None:
        """So many units are done; ``facts`` such as the loss are shown beside the bar."""

    def finish(self) -> None:
        """The piece of work is done."""
