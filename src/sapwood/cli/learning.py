"""``sapwood learn`` and ``sapwood undo``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sapwood import world
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
from sapwood.cli.showing import summary
from sapwood.cli.tracking import Track, check_tracker, track_round
from sapwood.data.names import shown
from sapwood.errors import ConfigError, RoundRefused
from sapwood.progress import Progress

if TYPE_CHECKING:
    from sapwood.learner import Learner

NEW = " (new states only)"


@dataclass(frozen=True)
class _Asked:
    """What the command was given.

    Attributes:
        state: the folder.
        data: pictures to learn.
        fixed: what holds for the whole life of a state; None where nothing was said.
        settings: by part.
        device: to train on; None for the best there is.
        round: the other arguments of ``Learner.learn``.
    """

    state: Path
    data: str
    fixed: Mapping[str, Any]
    settings: Settings
    device: str | None
    round: Mapping[str, Any]


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
    epochs: Annotated[int | None, typer.Option(help="Passes over the pictures (methods that train in steps).")] = None,
    seed: Annotated[int | None, typer.Option(help=f"Of everything that is drawn{NEW}; 0 if left out.")] = None,
    image_size: ImageSize = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    device: Device = None,
    workers: Annotated[int | None, typer.Option(help="Processes that make the training views.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or auto.")] = None,
    validation: Annotated[float | None, typer.Option(help="Share of each class held out for validation.")] = None,
    balance: Annotated[
        str | None,
        typer.Option(
            metavar="auto|none", help="Classes with few pictures weigh as much as others (auto), or less (none)."
        ),
    ] = None,
    cache_prefix: Annotated[
        int | None,
        typer.Option(
            metavar="VIEWS",
            help="Compute the blocks below the adapter once for so many views of each picture, and keep that on disk "
            "(faster, less varied; 0: every epoch has views of its own).",
        ),
    ] = None,
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
    relearn: Annotated[
        bool,
        typer.Option("--relearn", help="Learn again what was learned as the same class before."),
    ] = False,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Keep nothing, and exit with 3, if an old class among the pictures of --test loses more percentage "
            "points than that.",
        ),
    ] = None,
    keep_probe: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Keep N pictures of each class (with their masks) in the state, unlearned, to measure on after this "
            "and later rounds.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what there is to say before training, and stop; nothing is written.")
    ] = False,
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
        "balance": balance,
        "cache_prefix": cache_prefix,
    }
    settings = read_settings(config, set_ or [], training)
    given: dict[str, Any] = {"method": method, "head": head, "backbone": backbone, "seed": seed}
    given["image_size"] = read_size(image_size)
    check_device(device)
    check_tracker(track)
    world.begin()
    with nullcontext(Progress()) if world.follows() else listening() as progress:
        options: dict[str, Any] = {
            "task": task,
            "test": test,
            "unlabelled": unlabelled,
            "skip_bad": skip_bad,
            "restart": restart,
            "relearn": relearn,
            "max_drop": max_drop,
            "keep_probe": keep_probe,
            "progress": progress,
        }
        asked = _Asked(state, data, given, settings, device, options)
        if dry_run:
            if world.size() > 1:
                raise ConfigError("--dry-run: one process is enough")
            _look(asked, as_json)
            return
        try:
            learner = _open_or_create(asked)
        except RoundRefused as refused:
            if as_json:
                print_json(refused.facts)
            raise
        if world.follows():
            return
        if track is not None:
            progress.note(f"runs for {track} lie in {track_round(track, learner.state)}")
    version = learner.state.version
    if as_json:
        from sapwood.state.description import describe

        print_json(describe(version))
    else:
        print(f"{state} is now {version.id}\n{summary(version)}")


def _look(asked: _Asked, as_json: bool) -> None:
    """Print what ``learn`` would say before it trains; a state that is not there is made up elsewhere for the while."""
    from contextlib import ExitStack
    from tempfile import TemporaryDirectory

    from sapwood.state import State
    from sapwood.state.commit import refuse_foreign

    with ExitStack() as aside:
        if known := State.exists(asked.state):
            found = _open(asked).announce(asked.data, training=asked.settings.get("training"), **asked.round)
        else:
            refuse_foreign(asked.state)
            folder = Path(aside.enter_context(TemporaryDirectory(prefix="sapwood-")), asked.state.name or "state")
            found = _create(asked, folder).announce(asked.data, **asked.round)
    if as_json:
        print_json(found.as_json() | ({} if known else {"version": None}))
    else:
        print("\n".join((*map(shown, found.lines()), "dry run: nothing was written")))


def _open_or_create(asked: _Asked) -> Learner:
    from sapwood.state import State

    if world.first(lambda: State.exists(asked.state)):
        return _open(asked).learn(asked.data, training=asked.settings.get("training"), **asked.round)
    learner = _create(asked, asked.state)
    try:
        return learner.learn(asked.data, **asked.round)
    except BaseException:  # the state goes again if nothing worth keeping came of it
        if not world.follows() and not learner.classes_ and learner.state.training.load() is None:
            learner.state.abandon()
        raise


def _open(asked: _Asked) -> Learner:
    from sapwood.learner import Learner

    learner = Learner.open(asked.state, device=asked.device)
    check_unchanged(learner.record, asked.state, asked.fixed, asked.settings)
    return learner


def _create(asked: _Asked, folder: Path) -> Learner:
    """Make the state, once the data have been looked at, and say what it will stay."""
    from sapwood.kinds import kind_of
    from sapwood.learner import Learner

    kind = kind_of(asked.data)
    kind.read(asked.data, unlabelled=asked.round["unlabelled"])
    if asked.round["test"] is not None:
        kind.read_tests(asked.round["test"])
    chosen = {name: value for name, value in asked.fixed.items() if value is not None}
    learner = Learner.create(folder, kind=kind.name, settings=asked.settings, device=asked.device, **chosen)
    record = learner.record
    asked.round["progress"].note(
        f"new state {asked.state}: method {record['method']}, backbone {record['backbone']['name']} at "
        f"{shown_size(record['image_size'])} px (weights: {record['backbone']['licence']}); this stays"
    )
    return learner
