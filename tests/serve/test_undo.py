"""An undo over the network beside a round that somebody left half learned."""

from __future__ import annotations

from pathlib import Path

from sapwood.state import State
from sapwood.state.training import base_of

from .conftest import Serve


def leave_half(path: Path) -> None:
    """What a killed `learn` leaves behind."""
    state = State.open(path)
    with state.writer():
        state.training.begin({"base": base_of(state.version.record["tasks"]), "task": "nest", "classes": []})


def test_what_is_half_learned_goes_with_the_change_and_is_named(serve: Serve, copied: Path) -> None:
    client, before = serve(copied), State.open(copied).version
    leave_half(copied)
    back = client.post("/v1/undo")
    assert back.status_code == 200, back.text
    assert f"undo of {before.id}" in back.json()["note"]
    assert back.json()["note"].endswith("; round 'nest', which was half learned, has been dropped too")
    assert State.open(copied).training.plan() is None


def test_where_there_is_no_way_back_nothing_is_dropped(serve: Serve, copied: Path) -> None:
    client = serve(copied)
    State.open(copied).prune(1)
    leave_half(copied)
    answer = client.post("/v1/undo")
    assert answer.status_code >= 400, answer.text
    assert (State.open(copied).training.plan() or {})["task"] == "nest"
