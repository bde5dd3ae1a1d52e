"""``sapwood undo``, ``rollback`` and ``prune``: going back, and forgetting old versions."""

from __future__ import annotations

from typing import Annotated

import typer

from sapwood.cli.options import StateFolder
from sapwood.cli.screen import listening


def undo(state: StateFolder) -> None:
    """Go back by one change, which is a version of its own; or drop a round that is half learned, and nothing else."""
    from sapwood.state import State, take_back

    opened = State.open(state)
    before = opened.version.id
    with listening() as progress:
        version = take_back(opened, progress)
    print(f"{state} is {'still' if version.id == before else 'now'} {version.id}, {version.record['note']}")


def rollback(
    state: StateFolder,
    to: Annotated[
        str, typer.Option("--to", metavar="vN", help="The version, as `show --versions` lists it.", show_default=False)
    ],
) -> None:
    """Go back to an earlier version. The step is a version of its own, and `undo` takes it back."""
    from sapwood.state import State

    opened = State.open(state)
    with listening() as progress:
        with opened.writer():
            version = opened.rollback(to)
            half = opened.training.clear()
        if half is not None:
            progress.note(f"round {half.get('task')!r}, which was half learned, has been dropped too")
    print(f"{state} is now {version.id}, {version.record['note']}")


def prune(
    state: StateFolder,
    keep: Annotated[
        int, typer.Option("--keep", min=1, metavar="N", help="How many versions stay.", show_default=False)
    ],
) -> None:
    """Remove all versions but the newest ones, and the files that only they need. The current one always stays."""
    from sapwood.state import State

    opened = State.open(state)
    removed = opened.prune(keep)
    kept = len(opened.versions())
    gone = f"removed {', '.join(removed)}" if removed else "nothing to remove"
    print(f"{state} is still {opened.version.id}; {gone}; kept {kept} version{'s' if kept > 1 else ''}")
