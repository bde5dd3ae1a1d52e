"""What is asked of transformers itself: its classes, its silence, its way to write sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sapwood.backbones.base import first_line
from sapwood.errors import BackboneError


def transformers_class(name: str) -> Any:
    """A class of transformers by name; the import is put off to here, since it takes seconds."""
    try:
        import transformers

        return getattr(transformers, name)
    except (ImportError, AttributeError, RuntimeError) as error:
        why = first_line(error)
        raise BackboneError(f"transformers has no usable {name} ({why}); pip install 'transformers>=5.18'") from error


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no log lines below errors from transformers while a model is made or loaded."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def pixels(value: int | Sequence[int]) -> int:
    """Side in pixels of a size that a config gives as a number or as a (height, width) pair.

    Raises:
        BackboneError: the sides differ.
    """
    if isinstance(value, int):
        return value
    if len(set(value)) != 1:
        raise BackboneError(f"the config asks for {tuple(value)} px; only square sizes are known")
    return int(value[0])
