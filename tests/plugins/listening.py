"""A listener that keeps what a person would read."""

from __future__ import annotations

from sapwood.progress import Progress


class Listener(Progress):
    """Notes, one a line."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)
