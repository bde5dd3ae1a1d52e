"""``sapwood learn`` and ``sapwood undo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sapwood.cli.options import (
    AsJson,
    Device,
    ImageSize,
    Labelled,
    Settings,
    SkipBad,
    StateFolder,
    check_device,
    check_unchanged,
    read_settings,
    read_size,
)
from sapwood.cli.screen import listening, print_json, shown_size
from sapwood.cli.showing import describe, summary
from sapwood.cli.tracking import Track, check_tracker, track_round
from sapwood.errors import ConfigError

if TYPE_CHECKING:
    from sapwood.learner import Learner
    from sapwood.progress import Progress

NEW = " (new states only)"


def learn(
    state: StateFolder,
    data: Labelled,
    method: Annotated[str | None, typer.Option(help=f"A method, or ADAPTER+OBJECTIVE; see `methods`{NEW}.")] = None,
    head: Annotated[str | None, typer.Option(help=f"Another head than the method's{NEW}.")] = None,
    backbone: Annotated[str | None, typer.Option(help=f"A backbone; see `backbones`{NEW}.")] = None,
    task: Annotated[str | None, typer.Option(help="Name of the round.")] = None,
    test: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Labelled pictures to measure on afterwards; they choose nothing."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the pictures.")] = None,
    seed: Annotated[int | None, typer.Option(help=f"Of everything that is drawn{NEW}; 0 if left out.")] = None,
    image_size: ImageSize = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    device: Device = None,
    workers: Annotated[int | None, typer.Option(help="Processes that make the training views.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or auto.")] = None,
    validation: Annotated[float | None, typer.Option(help="Share of each class held out for validation.")] = None,
    unlabelled: Annotated[
        str, typer.Option(metavar="background|ignore", help="Masks: what belongs to none of their classes.")
    ] = "background",
    skip_bad: SkipBad = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="PART.KEY=VALUE", help="A setting; may be repeated.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="JSON or TOML file of settings: adapter, objective, head, training.")
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Throw a half-learned round away.")] = False,
    track: Track = None,
    as_json: AsJson = False,
) -> None:
    """Learn a round of pictures, or of pictures with masks, into STATE.

    A round brings new classes, more pictures of known ones, or both. STATE is made if it is not there. Training
    options hold for later rounds too. If the command is stopped, the same command goes on where it was.
    """
    if unlabelled not in ("background", "ignore"):
        raise ConfigError(f"--unlabelled must be background or ignore, got {unlabelled!r}")
    training = {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "workers": workers,
        "precision": precision,
        "validation": validation,
    }
    settings = read_settings(config, set_ or [], training)
    given: dict[str, Any] = {"method": method, "head": head, "backbone": backbone, "seed": seed}
    given["image_size"] = read_size(image_size)
    check_device(device)
    check_tracker(track)
    with listening() as progress:
        options: dict[str, Any] = {
            "task": task,
            "unlabelled": unlabelled,
            "skip_bad": skip_bad,
            "restart": restart,
            "progress": progress,
        }
        learner = _open_or_create(state, data, test, given, settings, device, options)
        if track is not None:
            progress.note(f"runs for {track} lie in {track_round(track, learner.state)}")
    version = learner.state.version
    if as_json:
        print_json(describe(version))
    else:
        print(f"{state} is now {version.id}\n{summary(version)}")


def undo(state: StateFolder) -> None:
    """Go back by one change. The step back is a version of its own."""
    from sapwood.learner import Learner

    with listening() as progress:
        version = Learner.open(state, device="cpu").undo(progress=progress)
    print(f"{state} is now {version.id}, {version.record['note']}")


def _open_or_create(
    state: Path,
    data: str,
    test: str | None,
    given: dict[str, Any],
    settings: Settings,
    device: str | None,
    options: dict[str, Any],
) -> Learner:
    from sapwood.learner import Learner
    from sapwood.state import State

    if State.exists(state):
        learner = Learner.open(state, device=device)
        check_unchanged(learner.record, state, given, settings)
        return learner.learn(data, test=test, training=settings.get("training"), **options)
    return _first_round(state, data, test, given, settings, device, options)


def _first_round(
    state: Path,
    data: str,
    test: str | None,
    given: dict[str, Any],
    settings: Settings,
    device: str | None,
    options: dict[str, Any],
) -> Learner:
    """Make the state, once the data have been looked at; it goes again if nothing worth keeping comes of it."""
    from sapwood.kinds import kind_of
    from sapwood.learner import Learner

    kind = kind_of(data)
    kind.read(data, unlabelled=options["unlabelled"])
    if test is not None:
        kind.read_tests(test)
    chosen = {name: value for name, value in given.items() if value is not None}
    learner = Learner.create(state, kind=kind.name, settings=settings, device=device, **chosen)
    _announce(learner, options["progress"])
    try:
        return learner.learn(data, test=test, **options)
    except BaseException:
        if not learner.classes_ and learner.state.training.load() is None:
            learner.state.abandon()
        raise


def _announce(learner: Learner, progress: Progress) -> None:
    record = learner.record
    progress.note(
        f"new state {learner.state.path}: method {record['method']}, backbone {record['backbone']['name']} at "
        f"{shown_size(record['image_size'])} px (weights: {record['backbone']['licence']}); this stays"
    )
