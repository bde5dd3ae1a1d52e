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
from sapwood.serve.running import _Protocol, _Server
from sapwood.serve.settings import ServeSettings


class Served(NamedTuple):
    """Where a server is, what it runs, and the server, which stops when ``should_exit`` is set, as SIGTERM sets it."""

    address: str
    app: FastAPI
    server: uvicorn.Server


@contextmanager
def serving(state: Path, **options: Any) -> Iterator[Served]:
    """A server that runs meanwhile."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        app = create_app(ServeSettings(state, port=port, **options))
        config = uvicorn.Config(
            app, http=_Protocol, ws="none", lifespan="on", log_config=None, timeout_graceful_shutdown=2
        )
        server = _Server(app, config, lambda: None)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.02)
        try:
            yield Served(f"http://127.0.0.1:{port}/", app, server)
        finally:
            server.should_exit = True
            thread.join(30)
