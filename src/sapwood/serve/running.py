"""The server process: its socket, its patience, its log."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from sapwood.errors import ConfigError
from sapwood.serve.problems import Problem
from sapwood.serve.security import HEADERS
from sapwood.serve.settings import ServeSettings
from sapwood.serve.telemetry import CROWDED, log_config, note

_PATIENCE = 10.0
"""Seconds that a new connection has for the head of its first request."""

_IDLE = 5
"""Seconds that a connection stays open between requests, and that requests under way have when the server stops."""

_CONNECTIONS_PER_REQUEST = 8
"""Browsers open more connections than they use at a time."""

_HEAD = 16 * 1024
"""Bytes of a request's head."""


class _Protocol(H11Protocol):
    """Says in the form of all other problems what uvicorn would say in plain text.

    It also hangs up on who connects and asks nothing, so that silent connections cannot keep others out.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._most, self.limit_concurrency = self.limit_concurrency, None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, CROWDED: self._most is not None and len(self.connections) > self._most}
        self.loop.call_later(_PATIENCE, self._silent)

    def send_400_response(self, msg: str) -> None:
        """What comes is not HTTP."""
        answer = Problem(400, "Not HTTP", "what came cannot be read as a request; its head may be too long").response()
        headers = [*answer.raw_headers, *((name.encode(), value.encode()) for name, value in HEADERS.items())]
        start = h11.Response(status_code=400, headers=[*headers, (b"connection", b"close")], reason=b"Bad Request")
        with suppress(h11.LocalProtocolError):  # half of another answer is out already
            for event in (start, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _silent(self) -> None:
        if self.scope is None and not self.transport.is_closing():
            self.transport.abort()


def serve(settings: ServeSettings, started: Callable[[str], None] = lambda url: None) -> None:
    """Serve until the process is told to stop (SIGINT, SIGTERM).

    Args:
        settings: where the state lies, who may ask and teach, and the limits.
        started: called with the address once requests are answered.

    Raises:
        StateError: there is no state, or it is damaged.
        ConfigError: the address cannot be listened at.
    """
    _more_files()
    host = settings.host.strip("[]")
    listening = _listen(host, settings.port)
    port = listening.getsockname()[1]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    with listening:
        from sapwood.serve.app import create_app  # takes seconds, which a port that is taken need not cost

        app = create_app(settings)
        _Server(app, _config(app, settings), lambda: _announce(url, started)).run([listening])


def _config(app: FastAPI, settings: ServeSettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="on",
        log_config=log_config(),
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_CONNECTIONS_PER_REQUEST * settings.connections,
        h11_max_incomplete_event_size=_HEAD,
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=_IDLE,
    )


class _Server(uvicorn.Server):
    def __init__(self, app: FastAPI, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._app, self._told = app, started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._told()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        jobs = getattr(self._app.state, "jobs", None)
        if jobs is not None:  # streams of events end now, not when patience with them does
            jobs.halt()
        await super().shutdown(sockets)


def _announce(url: str, started: Callable[[str], None]) -> None:
    note("listening", url=url)
    started(url)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"cannot listen at {host} port {port} ({reason}); choose another with --port or --host"
        ) from error


def _more_files() -> None:
    """Every connection is an open file, and many systems allow few of them at first."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 8192 if hard == resource.RLIM_INFINITY else min(hard, 8192)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
