"""A disk or a memory that is full while somebody teaches: what was done is done, and nothing else stays behind."""

from __future__ import annotations

import errno
import io
import zipfile
from pathlib import Path
from typing import Any

import pytest

from sapwood.learner import Learner
from sapwood.serve.jobs import Job
from sapwood.serve.worker import Order
from sapwood.state import State

from .conftest import Serve
from .samples import encoded, pixels


@pytest.mark.parametrize("where", ["teaching.unpack", "shelf.Shelf.make"])
def test_a_disk_that_fills_while_a_lesson_is_taken_in(
    where: str, serve: Serve, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client: Any = serve(copied)
    shelf, calls = client.app.state.shelf, []
    shelf.folder = tmp_path / "uploads"
    shelf.folder.mkdir()
    make = shelf.make

    def full(*given: Any) -> Any:
        calls.append(given)
        if where == "shelf.Shelf.make" and len(calls) == 1:
            return make()  # the upload itself still has room
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"sapwood.serve.{where}", full)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("cat/a.png", encoded(pixels("cat")))
    answer = client.post("/v1/learn", files={"archive": ("a.zip", packed.getvalue(), "application/zip")})
    assert (answer.status_code, answer.json()["title"]) == (507, "No room"), answer.text
    assert not list(shelf.folder.iterdir())
    assert client.get("/v1/jobs").json() == {"jobs": []}


def test_what_was_changed_is_said_to_be_so_although_it_is_not_taken_up_at_once(
    serve: Serve, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise MemoryError

    app: Any = serve(copied).app
    monkeypatch.setattr(app.state.serving, "refresh", fails)
    before = State.open(copied).version
    now = Learner.open(copied).learn([(pixels("cat", index), "cat") for index in range(4)]).state.version
    job = Job("0", Order(str(copied), str(copied)), "cat", "")
    app.state.jobs._conclude(job, before, {"event": "done", "version": now.id}, 0)
    assert (job.status, job.version) == ("done", now.id)


def test_an_undo_is_done_although_it_is_not_taken_up_at_once(
    serve: Serve, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise MemoryError

    client: Any = serve(copied)
    before = State.open(copied).version.id
    monkeypatch.setattr(client.app.state.serving, "refresh", fails)
    assert f"undo of {before}" in client.post("/v1/undo").json()["note"]
