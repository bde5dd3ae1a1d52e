"""What the server says of itself: metrics for Prometheus, one line of JSON per request, an id on every answer."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sapwood.serve.problems import Problem, problem_of
from sapwood.serve.security import HEADERS

VERSION, REQUEST = "X-Sapwood-Version", "X-Request-Id"
CROWDED = "crowded"
"""In a request's state: it came over one connection too many."""
_GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_log = logging.getLogger("sapwood.serve")


class Metrics:
    """Counts of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        shared: dict[str, Any] = {"registry": self.registry}
        self.requests = Histogram(
            "sapwood_request_seconds",
            "Time from a request to the end of its answer.",
            ("method", "route", "status"),
            buckets=_SECONDS,
            **shared,
        )
        self.batches = Histogram(
            "sapwood_batch_seconds", "Time of one pass of a batch through the network.", buckets=_SECONDS, **shared
        )
        self.batch_pictures = Histogram(
            "sapwood_batch_pictures", "Pictures of a batch.", buckets=(1, 2, 4, 8, 16, 32, 64), **shared
        )
        self.queue = Gauge("sapwood_queue_pictures", "Pictures that wait for the network.", **shared)
        self.open = Gauge("sapwood_open_requests", "Requests that are being answered.", **shared)
        self.confidence = Histogram(
            "sapwood_confidence",
            "Score of the class that a picture was called by.",
            buckets=[tenth / 10 for tenth in range(1, 11)],
            **shared,
        )
        self.predictions = Counter(
            "sapwood_predictions",
            "Pictures answered, by whether they look like anything that was taught (yes, no, unsaid).",
            ("known",),
            **shared,
        )
        for known in ("yes", "no", "unsaid"):
            self.predictions.labels(known)  # a share can be formed from the first answer on
        self.switches = Counter("sapwood_version_switches", "Versions of the state taken up since the start.", **shared)
        self.version = Info("sapwood_state", "The version of the state that answers.", **shared)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)


class JsonLines(logging.Formatter):
    """One JSON object a line; no pixels, no names of files, no tokens: only what is given as ``fields``."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, message, and the record's own fields."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        line: dict[str, Any] = {"time": stamp, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_config() -> dict[str, Any]:
    """For ``logging.config.dictConfig``: the server's lines, and those of what runs it, as JSON on stderr."""
    to_stderr = {"handlers": ["stderr"], "level": "INFO", "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": JsonLines}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
        "loggers": {
            "sapwood.serve": to_stderr,
            "uvicorn": to_stderr,
            "python_multipart": {"level": "CRITICAL"},  # would print what a client sent
        },
    }


def note(event: str, **fields: Any) -> None:
    """One line in the log."""
    _log.info(event, extra={"fields": fields})


def _has_body(headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


class Frame:
    """Around every request: its id, the version that answers, safe headers, a line in the log, a limit on how many.

    What no handler has caught ends here, as a problem document that does not show the error.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, version: Callable[[], str], most: int) -> None:
        self.app, self.metrics, self.version, self.most = app, metrics, version, most
        self.open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request within the frame."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST, "")
        identifier = given if _GIVEN_ID.fullmatch(given) else uuid.uuid4().hex
        facts: dict[str, Any] = scope.setdefault("state", {})
        facts["request_id"] = identifier
        status, started = 0, time.perf_counter()
        if scope["method"] == "HEAD":  # whoever may GET may ask for the head alone; no body is sent to it
            scope = {**scope, "method": "GET"}
        unread = _has_body(Headers(scope=scope))

        async def counted() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message.get("more_body", False)
            return message

        async def framed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._complete(message, identifier)
                if unread:  # nobody will read the rest, so that the connection is of no more use
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        self.open += 1
        self.metrics.open.inc()
        try:
            if self.open > self.most or facts.get(CROWDED):
                busy = Problem(
                    503,
                    "Too many requests at a time",
                    "as many requests are being answered as may be; try again in a moment",
                    headers={"Retry-After": "1", "Connection": "close"},
                )
                await busy.response()(scope, receive, framed)
            else:
                await self.app(scope, counted, framed)
        except ClientDisconnect:
            status = status or 499  # as nginx calls a client that went away
        except Exception as error:
            _log.exception("error", extra={"fields": {"request": identifier}})
            if status:
                raise  # half an answer is out: the connection must break
            await problem_of(error).response()(scope, receive, framed)
        finally:
            self.open -= 1
            self.metrics.open.dec()
            self._record(scope, facts, identifier, status or 499, time.perf_counter() - started)

    def _complete(self, message: Message, identifier: str) -> None:
        headers = MutableHeaders(scope=message)
        headers[REQUEST] = identifier
        headers.setdefault(VERSION, self.version())
        headers.setdefault("Cache-Control", "no-store")
        for name, value in HEADERS.items():
            headers.setdefault(name, value)

    def _record(self, scope: Scope, facts: Mapping[str, Any], identifier: str, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self.metrics.requests.labels(scope["method"], route, str(status)).observe(seconds)
        note(
            "request",
            request=identifier,
            method=scope["method"],
            path=scope["path"][:200],
            status=status,
            ms=round(1000 * seconds, 1),
            pictures=facts.get("pictures", 0),
        )
