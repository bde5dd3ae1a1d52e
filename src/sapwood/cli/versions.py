"""``sapwood undo``, ``rollback`` and ``prune``: going back, and forgetting old versions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sapwood.cli.options import AsJson, StateFolder
from sapwood.cli.screen import listening, print_json
from sapwood.wording import counted

if TYPE_CHECKING:
    from sapwood.state import Version


def undo(state: StateFolder, as_json: AsJson = False) -> None:
    """Go back by one change, which is a version of its own; or drop a round that is half learned, and nothing else."""
    from sapwood.state import State, take_back

    opened = State.open(state, whole=False)
    before = opened.version.id
    with listening() as progress:
        version = take_back(opened, progress)
    _say(state, before, version, as_json)


def rollback(
    state: StateFolder,
    to: Annotated[
        str, typer.Option("--to", metavar="vN", help="The version, as `show --versions` lists it.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Go back to an earlier version. The step is a version of its own, and `undo` takes it back."""
    from sapwood.state import State

    opened = State.open(state, whole=False)
    before = opened.version.id
    with listening() as progress:
        with opened.writer():
            version = opened.rollback(to)
            half = opened.training.clear()
        if half is not None:
            progress.note(f"round {half.get('task')!r}, which was half learned, has been dropped too")
    _say(state, before, version, as_json)


def _say(folder: Path, before: str, version: Version, as_json: bool) -> None:
    note = version.record["note"]
    if as_json:
        print_json({"version": version.id, "before": before, "note": note})
    else:
        print(f"{folder} is {'still' if version.id == before else 'now'} {version.id}, {note}")


def prune(
    state: StateFolder,
    keep: Annotated[
        int, typer.Option("--keep", min=1, metavar="N", help="How many versions stay.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Remove all versions but the newest ones, and the files that only they need. The current one always stays."""
    from sapwood.state import State

    opened = State.open(state)
    removed = opened.prune(keep)
    versions = [version.id for version in opened.versions()]
    if as_json:
        print_json({"version": opened.version.id, "removed": removed, "versions": versions})
        return
    kept = len(versions)
    gone = f"removed {', '.join(removed)}" if removed else "nothing to remove"
    print(f"{state} is still {opened.version.id}; {gone}; kept {counted(kept, 'version')}")
