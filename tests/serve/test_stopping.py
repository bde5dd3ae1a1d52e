"""A server that is told to stop while something is being learned."""

from __future__ import annotations

import json
import os
from pathlib import Path

import httpx
import psutil
import pytest

from sapwood.state import State

from .samples import picture
from .servers import serving

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals end the worker here")


def test_who_follows_a_lesson_hears_its_end(copied: Path) -> None:
    before, others = State.open(copied).version.id, set(psutil.Process().children())
    with serving(copied) as served, httpx.Client(base_url=served.address, timeout=60, verify=False) as client:
        sent = client.post("/v1/learn", data={"name": "cat"}, files={"image": picture("cat")})
        path = sent.headers["location"]
        with client.stream("GET", path, headers={"Accept": "text/event-stream"}) as answer:
            lines = answer.iter_lines()
            while not (line := next(lines)).startswith("data: ") or json.loads(line[6:])["status"] != "running":
                pass
            (worker,) = set(psutil.Process().children()) - others
            served.server.should_exit = True
            list(lines)  # a stream that is cut off raises
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    job = served.app.state.jobs.get(path.rpartition("/")[2])[1]
    assert (job["status"], "was stopped" in job["error"]) == ("failed", True)
    assert State.open(copied).version.id == before
