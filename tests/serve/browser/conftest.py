"""A browser, and servers for it."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra: serve")
pytest.importorskip("playwright.sync_api", reason="needs playwright")

from playwright.sync_api import Browser, Page, expect, sync_playwright

from sapwood.learner import Learner

from ..conftest import BACKBONE, SIDE
from ..servers import serving

PATIENCE = 30_000  # milliseconds: other tests may have the processor
expect.set_options(timeout=PATIENCE)

MARKUP = "<img src=x onerror=alert(1)>"
NAMES = ("chromium", "chromium-browser", "google-chrome")


# Not longer than for a file: playwright runs an event loop in this thread, where no test could then start its own.
@pytest.fixture(scope="module")
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


Run = Callable[..., str]
Visit = Callable[..., Page]


@pytest.fixture
def run() -> Iterator[Run]:
    """``run(state, read_only=True)``: the address of a server that stops with the test."""
    with ExitStack() as stack:
        yield lambda state, **options: stack.enter_context(serving(state, **options)).address


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
            page.set_default_timeout(PATIENCE)
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


_DRAGGED = """files => {
    const transfer = new DataTransfer();
    for (const { name, content } of files) {
        const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
        transfer.items.add(new File([bytes], name, { type: "image/png" }));
    }
    return transfer;
}"""


@pytest.fixture(scope="session")
def photographs(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Real pictures as files: of CIFAR-10's birds and ships, and of CamVid's streets."""
    folder = tmp_path_factory.mktemp("photographs")
    names = json.loads((shared_data / "cifar10" / "classes.json").read_text())["classes"]
    found: dict[str, list[Path]] = {}
    with np.load(shared_data / "cifar10" / "test.npz") as data:
        images, labels = data["images"], data["labels"]
        for name in ("bird", "ship"):
            for index in np.flatnonzero(labels == names.index(name))[:12]:
                found.setdefault(name, []).append(folder / f"{name}-{index}.png")
                Image.fromarray(images[index]).save(found[name][-1])
    streets = sorted((shared_data / "camvid" / "test" / "images").iterdir())
    found["street"] = streets[::20][:8]
    return found


@pytest.fixture(scope="module")
def state(photographs: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It names ships, and birds under a name that is markup."""
    learner = Learner.create(tmp_path_factory.mktemp("page") / "zoo", backbone=BACKBONE, method="ncm", image_size=SIDE)
    for name, task in (("ship", "vessels"), ("bird", "animals")):
        label = MARKUP if name == "bird" else name
        learner.learn([(Image.open(path), label) for path in photographs[name][:10]], task=task)
    return learner.state.path


@pytest.fixture(scope="module")
def address(state: Path) -> Iterator[str]:
    with serving(state) as served:
        yield served.address


def drop(page: Page, field: str, paths: list[Path]) -> None:
    """As if dragged from a folder to a field of the page."""
    files = [{"name": path.name, "content": base64.b64encode(path.read_bytes()).decode()} for path in paths]
    page.dispatch_event(field, "drop", {"dataTransfer": page.evaluate_handle(_DRAGGED, files)})
