"""The frame of every export: what goes before and after a format's own work, and how the result takes its place."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from sapwood import __version__
from sapwood.errors import ConfigError, SapwoodError
from sapwood.export.card import card, preprocessing_facts
from sapwood.export.formats import FORMATS
from sapwood.export.options import DTYPES, Check, Dtype, Format, Options
from sapwood.export.plain import Plain
from sapwood.export.views import CHECKED, labelled_views, made_up
from sapwood.progress import Progress
from sapwood.state import State
from sapwood.state.files import encode
from sapwood.wording import counted

MARKER = "sapwood-export.json"
CARD = "README.md"
_RESTRICTED = re.compile(r"unknown|\bNC\b|non-?commercial|research|proprietary|^other$|^$", re.IGNORECASE)


@dataclass(frozen=True)
class Shipped:
    """An export that has taken its place.

    Attributes:
        path: the folder, or the one file.
        card: the file that says how to use it.
        format: name of the format.
        version: of the state it was made of.
        max_difference: largest absolute difference of the outputs on the pictures looked at.
        limit: what it had to keep.
        checked_on: these pictures, in words.
        notes: what the user should know, a line each.
        bytes: of all its files.
        facts: all of ``sapwood-export.json``.
    """

    path: Path
    card: Path
    format: str
    version: str
    max_difference: float
    limit: float
    checked_on: str
    notes: tuple[str, ...]
    bytes: int
    facts: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        paths = {"path": str(self.path), "card": str(self.card)}
        return {**asdict(self), **paths, "notes": list(self.notes), "facts": dict(self.facts)}


def export(
    state: str | os.PathLike[str],
    out: str | os.PathLike[str],
    to: str = "merged",
    *,
    force: bool = False,
    task: int | None = None,
    dtype: str = "fp32",
    preprocessing: bool = False,
    data: Any = None,
    accept_licence: bool = False,
    progress: Progress | None = None,
) -> Shipped:
    """Write the current version of a state in a form that other tools open.

    Args:
        state: the state folder.
        out: where to; a folder, or for a format of one file a name with its suffix.
        to: name of the format, an entry of ``FORMATS``.
        force: replace what an earlier export left at ``out``.
        task: of an adapter that chooses between rounds, the round (from 1) whose expert leaves, with its classes.
        dtype: of the weights: ``fp32``, ``fp16`` or ``int8``, where the format knows it.
        preprocessing: resize and normalisation inside the file, where the format knows it.
        data: labelled pictures to check on, and to measure what ``dtype`` costs; made-up ones are checked on without.
        accept_licence: the licence of the backbone's weights has been read; asked for where it is unknown or
            restricts the use.
        progress: is told of what takes long.

    Raises:
        ConfigError: nothing learned yet, ``out`` is there, an option that the format has not, a licence.
        NotMergeable: the change depends on the picture and the format holds weights alone; nothing is written.
        SapwoodError: the files answer differently than the network; nothing is written.
    """
    form, target = FORMATS[to], Path(out).expanduser()
    precision = _precision(dtype)
    _check_options(to, form, precision, preprocessing)
    opened = State.open(state)
    _check_target(target, form, Path(state), force)
    _check_licence(opened.version.record["backbone"], accept_licence)
    plain = Plain.open(opened, task)
    options = _options(plain, target, task, precision, preprocessing, data, progress or Progress())
    with _aside(target) as folder:
        inside = folder / "export"
        inside.mkdir()
        check = form.write(plain, inside, options)
        if not check.max_difference <= check.limit:  # also where it is no number
            raise SapwoodError(
                f"the export answers differently: by up to {check.max_difference:.2g} on {options.views_from}, allowed "
                f"is {check.limit:.0e}; nothing was written. Please report it with the method "
                f"({plain.record['method']}) and the backbone ({plain.backbone.info.name})"
            )
        facts = _facts(to, plain, check, options)
        (inside / MARKER).write_bytes(encode(json.dumps(facts, ensure_ascii=False, indent=1) + "\n"))
        (inside / CARD).write_bytes(encode(card(to, form, plain, facts, check)))
        written = [file for file in inside.rglob("*") if file.is_file()]
        for file in written:  # safetensors makes files that nobody but their owner may read
            file.chmod((inside / MARKER).stat().st_mode)
        size = sum(file.stat().st_size for file in written)
        _place(inside, target, form, folder)
    checked = (check.max_difference, check.limit, options.views_from)
    card_at = target.with_suffix(".md") if _is_file(target, form) else target / CARD
    return Shipped(target, card_at, to, plain.version, *checked, check.notes, size, facts)


def restricted(licence: str) -> bool:
    """Whether a licence is unknown or does not allow every use.

    >>> [restricted(text) for text in ("MIT", "Apache-2.0", "unknown", "CC-BY-NC-4.0", "none (random weights)")]
    [False, False, True, True, False]
    """
    return _RESTRICTED.search(licence) is not None


def _precision(dtype: str) -> Dtype:
    for known in DTYPES:
        if dtype == known:
            return known
    raise ConfigError(f"--dtype {dtype}: is none of {', '.join(DTYPES)}")


def _check_options(name: str, form: Format, dtype: Dtype, inside: bool) -> None:
    given = {"dtype": dtype != "fp32", "with-preprocessing": inside}
    known = {"dtype": "dtype", "with-preprocessing": "preprocessing"}
    wrong = [f"--{option}" for option, used in given.items() if used and known[option] not in form.takes]
    if wrong:
        raise ConfigError(f"{', '.join(wrong)}: not with --to {name}; take --to onnx, or leave it out")


def _check_licence(backbone: Mapping[str, Any], accepted: bool) -> None:
    if restricted(backbone["licence"]) and not accepted:
        raise ConfigError(
            f"the weights of {backbone['name']} are under the licence {backbone['licence']!r}, which may not allow "
            "every use of what is exported; read it, then add --accept-licence"
        )


def _options(
    plain: Plain, target: Path, task: int | None, dtype: Dtype, inside: bool, data: Any, progress: Progress
) -> Options:
    size = plain.image_size
    labelled = None if data is None else labelled_views(data, plain.kind, plain.classes, size)
    if labelled is None:
        views, source = made_up(size), f"{CHECKED} made-up pictures"
    else:
        step = max(1, len(labelled.views) // CHECKED)
        views = labelled.views[::step][:CHECKED]
        source = f"{counted(len(views), 'picture')} of {labelled.source}"
    return Options(size, views, source, task, dtype, inside, labelled, target.name, progress)


def _facts(name: str, plain: Plain, check: Check, options: Options) -> dict[str, Any]:
    info = plain.backbone.info
    return {
        "sapwood_export": 1,
        "format": name,
        "sapwood": __version__,
        "version": plain.version,
        "kind": plain.kind,
        "method": plain.record["method"],
        "parts": dict(plain.record["parts"]),
        "task": options.task,
        "backbone": {
            "name": info.name,
            "revision": info.revision,
            "sha256": info.sha256,
            "licence": info.licence,
        },
        "classes": list(plain.classes),
        "image_size": list(options.image_size),
        "preprocessing": preprocessing_facts(plain),
        "temperature": float(plain.head.temperature),
        "temperature_in_logits": True,
        "max_difference": check.max_difference,
        "limit": check.limit,
        "checked_on": options.views_from,
        "notes": list(check.notes),
        **check.facts,
    }


def _check_target(target: Path, form: Format, state: Path, force: bool) -> None:
    """Refuse what is there, unless an earlier export made it and it may be replaced."""
    if form.suffix is None and target.suffix in (".onnx", ".safetensors", ".zip"):
        raise ConfigError(f"{target}: this format is a folder; name one")
    if not target.parent.is_dir():
        raise ConfigError(f"{target}: there is no folder {target.parent}; make it first")
    whole = target.resolve()
    if whole == state.resolve() or state.resolve() in whole.parents:
        raise ConfigError(f"{target}: lies in the state {state}; name another place")
    for place in _places(target, form):
        if not os.path.lexists(place):
            continue
        if not force:
            raise ConfigError(f"{place} is there already; name another place, or replace it with --force")
        if not _made_by_export(place, target):
            raise ConfigError(f"{place} was not made by an export, so --force leaves it alone; name another place")


def _places(target: Path, form: Format) -> list[Path]:
    return [target, target.with_suffix(".md")] if _is_file(target, form) else [target]


def _is_file(target: Path, form: Format) -> bool:
    return form.suffix is not None and target.suffix == form.suffix


def _made_by_export(place: Path, target: Path) -> bool:
    if place.is_symlink():
        return False
    if place.is_dir():
        return (place / MARKER).is_file() and place == target and not State.exists(place)
    with suppress(OSError, ValueError):
        return _mark(target) in target.with_suffix(".md").read_text(encoding="utf-8")
    return False


def _mark(target: Path) -> str:
    """What the card beside a single file ends with."""
    return f"<!-- sapwood export: {target.name} -->"


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """A folder beside the target, gone afterwards; what the system refuses becomes one line."""
    folder = target.parent / f".{target.name}.{uuid4().hex[:8]}"
    try:
        folder.mkdir()
        yield folder
    except OSError as error:
        raise SapwoodError(f"{target} cannot be written ({error.strerror or error}); nothing was exported") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _place(inside: Path, target: Path, form: Format, aside: Path) -> None:
    """Rename what was written into place; what it replaces goes only when it has arrived."""
    if _is_file(target, form):
        assert form.suffix is not None
        files = [file for file in inside.iterdir() if file.suffix == form.suffix]
        assert len(files) == 1, f"a single file was asked for; the format wrote {len(files)}"
        text = (inside / CARD).read_text(encoding="utf-8", errors="surrogatepass")
        (inside / CARD).write_bytes(encode(f"{text}\n{_mark(target)}\n"))
        os.replace(inside / CARD, target.with_suffix(".md"))
        os.replace(files[0], target)
        return
    old = aside / "old"
    if target.exists():
        os.replace(target, old)
    try:
        os.replace(inside, target)
    except OSError:
        if old.exists():
            os.replace(old, target)
        raise
