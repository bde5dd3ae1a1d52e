"""Servers on real sockets, in a thread of the test's own process: to start another process takes seconds."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn
from fastapi import FastAPI

from sapwood.serve.app import create_app
from sapwood.serve.settings import ServeSettings


class Served(NamedTuple):
    """Where a server is, and what it runs."""

    address: str
    app: FastAPI


@contextmanager
def serving(state: Path, **options: Any) -> Iterator[Served]:
    """A server that runs meanwhile."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        app = create_app(ServeSettings(state, port=port, **options))
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.02)
        try:
            yield Served(f"http://127.0.0.1:{port}/", app)
        finally:
            server.should_exit = True
            thread.join(30)
