"""What is asked of transformers itself: its classes, its silence, its way to write sizes; models of it as backbones."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sapwood.backbones.base import Backbone, BackboneInfo, Site, fingerprint, first_line
from sapwood.backbones.families import IMAGENET, Channels
from sapwood.errors import BackboneError


class LibraryBackbone(Backbone):
    """A model of transformers behind the interface of ``Backbone``; a subclass knows one sort of network.

    Args:
        model: of transformers.
        shape: fields of ``BackboneInfo`` that follow from the model.
        name, revision, licence: see ``BackboneInfo``.
        mean, std: per channel; None takes those of ``usual``.
        usual: mean and std where a checkpoint brings none.
    """

    def __init__(
        self,
        model: Any,
        shape: Mapping[str, Any],
        *,
        name: str,
        revision: str,
        licence: str,
        mean: Channels | None = None,
        std: Channels | None = None,
        usual: tuple[Channels, Channels] = IMAGENET,
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.info = BackboneInfo(
            name=name,
            revision=revision,
            sha256=fingerprint(model),
            licence=licence,
            mean=mean or usual[0],
            std=std or usual[1],
            **shape,
        )
        self.sites = tuple(self._find_sites())
        self.maps = tuple(self._find_maps())
        self.eval()

    @abstractmethod
    def _find_sites(self) -> Iterable[Site]:
        """Where adapters may sit."""

    @abstractmethod
    def _find_maps(self) -> Iterable[str]:
        """Paths of the modules whose output is a feature map."""


def transformers_class(name: str) -> Any:
    """A class of transformers by name; the import is put off to here, since it takes seconds."""
    try:
        import transformers

        return getattr(transformers, name)
    except (ImportError, AttributeError, RuntimeError) as error:
        if _stopped(error):
            raise KeyboardInterrupt from error
        why = first_line(error)
        raise BackboneError(f"transformers has no usable {name} ({why}); pip install 'transformers>=5.18'") from error


def _stopped(error: BaseException | None) -> bool:
    """Whether a Ctrl-C lies at the root of an error: imports of imports wrap it into errors of their own."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


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
