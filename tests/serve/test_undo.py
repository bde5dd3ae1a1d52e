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


def test_what_is_half_learned_goes_alone_as_on_the_command_line(serve: Serve, copied: Path) -> None:
    client, before = serve(copied), State.open(copied).version
    leave_half(copied)
    said = client.get("/v1/history").json()["undo"]
    assert (said["drops"], said["to"], said["rounds"], said["goes"]) == ("nest", before.id, [], [])
    back = client.post("/v1/undo").json()
    assert back["version"] == before.id
    assert back["note"] == "round 'nest', which was half learned, has been dropped; nothing else has changed"
    assert State.open(copied).training.plan() is None
    assert client.get("/v1/history").json()["undo"]["drops"] is None
    assert f"undo of {before.id}" in client.post("/v1/undo").json()["note"]


def test_where_nothing_was_learned_before_what_is_half_learned_goes_all_the_same(serve: Serve, copied: Path) -> None:
    client = serve(copied)
    state = State.open(copied)
    while state.version.record.get("parent") is not None:
        state.undo()
    leave_half(copied)
    assert client.post("/v1/undo").json()["version"] == state.version.id
    assert State.open(copied).training.plan() is None
    refused = client.post("/v1/undo")
    assert (refused.status_code, refused.json()["title"]) == (409, "Nothing to undo")


def test_only_what_was_shown_is_undone(serve: Serve, copied: Path) -> None:
    client = serve(copied)
    shown = client.get("/v1/history").json()["version"]
    now = client.post("/v1/undo", params={"version": shown}).json()["version"]
    late = client.post("/v1/undo", params={"version": shown})
    assert (late.status_code, late.json()["title"]) == (409, "The state has changed")
    assert State.open(copied).version.id == now
    leave_half(copied)
    assert client.post("/v1/undo", params={"version": now}).status_code == 409, "the half learned round was not shown"
    assert client.post("/v1/undo", params={"version": now, "drops": "nest"}).json()["version"] == now
