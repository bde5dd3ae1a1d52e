"""Whatever goes wrong, said as a problem document (RFC 9457): a status, a title, and a line that says why."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from sapwood.errors import SapwoodError, StateBusy, UsageError
from sapwood.serve.wording import worded


class Problem(Exception):
    """What a client is told when its request cannot be fulfilled.

    Args:
        status: of HTTP, 400 to 599.
        title: the same words for every problem of the kind.
        detail: what is wrong this time, and what to do.
        headers: beside those that every answer has.
        extra: further members of the document.
    """

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.title, self.detail = status, title, detail
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})

    def response(self) -> JSONResponse:
        """The document, as ``application/problem+json``."""
        content = {"type": "about:blank", "title": self.title, "status": self.status, "detail": self.detail}
        return JSONResponse(
            {**self.extra, **content}, self.status, headers=self.headers, media_type="application/problem+json"
        )


def problem_of(error: Exception) -> Problem:
    """What an error of the library means over HTTP: the client's mistake keeps its words, a bug does not show."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, StateBusy):
        return Problem(409, "State is busy", str(error), headers={"Retry-After": "5"})
    if isinstance(error, UsageError):
        return Problem(422, "Cannot be done", str(error))
    if isinstance(error, SapwoodError):
        return Problem(500, "Failed", str(error))
    return Problem(500, "Internal error", "the server met an error of its own; its log says more under the request id")


async def _on_problem(request: Request, error: Exception) -> JSONResponse:
    problem = problem_of(error)
    if isinstance(error, SapwoodError):
        problem.detail = worded(problem.detail, request.app.state.settings.state)
    return problem.response()


async def _on_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    title = HTTPStatus(error.status_code).phrase
    details = {404: f"there is nothing at {request.url.path[:200]}", 405: f"{request.method} is not possible here"}
    problem = Problem(error.status_code, title, details.get(error.status_code, str(error.detail)))
    problem.headers.update(error.headers or {})
    return problem.response()


async def _on_validation(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    faults = [f"{'.'.join(map(str, fault['loc'][1:]))}: {fault['msg']}" for fault in error.errors()[:5]]
    return Problem(422, "Not understood", "; ".join(faults)).response()


def install(app: FastAPI) -> None:
    """Answer the errors of an application with problem documents; bugs are answered by ``telemetry.Frame``."""
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(SapwoodError, _on_problem)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_validation)
