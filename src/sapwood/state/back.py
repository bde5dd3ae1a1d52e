"""What ``undo`` does; `rollback` goes to any version, and half-learned rounds go with it."""

from __future__ import annotations

from sapwood.progress import Progress
from sapwood.state.folder import State
from sapwood.state.records import Version


def take_back(state: State, progress: Progress | None = None) -> Version:
    """Drop the round that is half learned and nothing else; else go back by one change, which is a new version.

    Raises:
        StateError: there is no way back.
        StateBusy: another process is writing.
    """
    with state.writer():
        half = state.training.half_learned(state.version.record["tasks"])
        version = state.version if half is not None else state.undo()
        state.training.clear()
    if half is not None and progress is not None:
        progress.note(f"round {half!r}, which was half learned, has been dropped; nothing else has changed")
        if not version.record["tasks"]:
            progress.note(f"nothing has been learned yet; for another method or backbone, remove {state.path} first")
    return version
