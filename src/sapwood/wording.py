"""How messages say things."""

from __future__ import annotations


def counted(number: int, thing: str, things: str | None = None) -> str:
    """A number and what it counts.

    Args:
        number: how many.
        thing: what one of them is called.
        things: what several are called; None appends an s.

    >>> counted(1, "picture"), counted(12000, "picture"), counted(0, "class", "classes")
    ('1 picture', '12,000 pictures', '0 classes')
    """
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"
