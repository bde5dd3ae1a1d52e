"""Who may ask and teach, from where; and what a browser is told about the pages."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
from urllib.parse import urlsplit

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from sapwood.serve.problems import Problem
from sapwood.serve.settings import ServeSettings

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "media-src 'self' blob:; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Of every answer."""

_HERE = ("localhost", "127.0.0.1", "::1")
_READING = ("GET", "HEAD", "OPTIONS")


class Guard:
    """Refuses requests under a foreign name (a page that had its own name point here), and writes by foreign pages."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self.app = app
        self.everywhere = settings.everywhere
        names = {*_HERE, *settings.allowed_hosts} | (set() if settings.everywhere else {settings.host})
        if settings.everywhere:
            names |= {socket.gethostname(), socket.getfqdn()}
        self.names = {name.strip("[]").lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and (problem := self.fault(scope["method"], Headers(scope=scope))):
            await problem.response()(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def fault(self, method: str, headers: Headers) -> Problem | None:
        """What is wrong with where a request comes from."""
        host = headers.get("host", "")
        if not self._known(_name(host)):
            return Problem(
                421,
                "Wrong host",
                "this server does not answer to the name in the Host header; if it should, start it with --allow-host",
            )
        if method in _READING:
            return None
        origin = headers.get("origin")
        if origin is not None and _netloc(origin) != host.lower():
            return Problem(403, "Foreign origin", "a page of another origin may not write here")
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return Problem(403, "Foreign origin", "a page of another site may not write here")
        return None

    def _known(self, name: str) -> bool:
        if name in self.names:
            return True
        if not self.everywhere:
            return False
        try:  # only a name can be made to point here by somebody else, an address cannot
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def require_ask(request: Request) -> None:
    """Dependency of what asks: the token to ask or to teach, where one is set."""
    settings: ServeSettings = request.app.state.settings
    if settings.ask_token is not None:
        _demand(request, settings, "ask", settings.ask_token, settings.teach_token)


def require_teach(request: Request) -> None:
    """Dependency of what teaches: not read-only, and the token to teach, where one is set."""
    settings: ServeSettings = request.app.state.settings
    if settings.read_only:
        raise Problem(403, "Read only", "this server was started with --read-only: it answers and is not taught")
    if settings.teach_token is not None:
        _demand(request, settings, "teach", settings.teach_token)


def _demand(request: Request, settings: ServeSettings, what: str, *accepted: str | None) -> None:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    extra = {"needs_token": settings.needs_token()}
    challenge = {"WWW-Authenticate": f'Bearer realm="sapwood {what}"'}
    if scheme.lower() != "bearer" or not given.strip():
        raise Problem(
            401,
            "Token needed",
            f"to {what}, send the header Authorization: Bearer TOKEN",
            headers=challenge,
            extra=extra,
        )
    # All are compared, each by digest, so that the time tells neither a length nor which of them came close.
    fits = [_same(given.strip(), token) for token in accepted if token is not None]
    if not any(fits):
        raise Problem(401, "Wrong token", f"this is not the token to {what}", headers=challenge, extra=extra)


def _same(given: str, token: str) -> bool:
    one, other = (hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest() for text in (given, token))
    return hmac.compare_digest(one, other)
