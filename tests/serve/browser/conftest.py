"""A browser, and servers for it."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra: serve")
pytest.importorskip("playwright.sync_api", reason="needs playwright")

import uvicorn
from playwright.sync_api import Browser, Page, sync_playwright

from sapwood.serve.app import create_app
from sapwood.serve.settings import ServeSettings

NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium as the system has it; playwright's own is not needed."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    with sync_playwright() as playwright:
        options = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            options.append("--no-sandbox")
        made = playwright.chromium.launch(executable_path=program, args=options)
        yield made
        made.close()


@pytest.fixture(scope="session")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots are kept: SAPWOOD_ARTEFACTS, else pytest's temporary folder."""
    chosen = os.environ.get("SAPWOOD_ARTEFACTS")
    folder = Path(chosen) if chosen else tmp_path_factory.mktemp("page")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def serving(state: Path, **options: Any) -> Iterator[str]:
    """The address of a server that runs meanwhile."""
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
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.should_exit = True
            thread.join(30)


Run = Callable[..., str]
Visit = Callable[..., Page]


@pytest.fixture
def run() -> Iterator[Run]:
    """``run(state, read_only=True)``: the address of a server that stops with the test."""
    with ExitStack() as stack:
        yield lambda state, **options: stack.enter_context(serving(state, **options))


@pytest.fixture
def visit(browser: Browser, run: Run) -> Iterator[Visit]:  # windows are closed before their servers stop
    """``visit(address, color_scheme="dark")``: the page in a window of its own.

    At the end of the test nothing may have been complained of on the console, but for what ``expected`` names.
    """
    complaints: list[str] = []
    allowed: list[str] = []
    with ExitStack() as stack:

        def open_page(address: str, *, expected: tuple[str, ...] = (), **options: Any) -> Page:
            allowed.extend(expected)
            options.setdefault("viewport", {"width": 1180, "height": 900})
            context = browser.new_context(**options)
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(30_000)
            page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("request", lambda asked: complaints.extend(foreign(asked.url, address)))
            page.goto(address)
            return page

        yield open_page
    assert [said for said in complaints if not any(words in said for words in allowed)] == []


def foreign(url: str, address: str) -> list[str]:
    """A request that leaves the server."""
    return [] if url.startswith((address.partition("#")[0], "blob:", "data:")) else [url]
