"""The page as it lies on the disk, what the server hands out of it, and the history that it draws."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sapwood.learner import Learner

pytest.importorskip("fastapi", reason="needs the extra: serve")

from starlette.testclient import TestClient

from sapwood.report import gather
from sapwood.serve.pages import FILES

from .conftest import ASK, TEACH
from .samples import pixels


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_part_asks_for_anything_from_outside(name: str) -> None:
    text = FILES[name].read_text("utf-8")
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text))
    assert addresses <= {"http://www.w3.org"}  # the name of SVG, not an address
    for imported in re.findall(r'(?:from|import) "([^"]+)"', text):
        assert imported.removeprefix("./") in FILES
    for mark in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "@import"):
        assert mark not in text


def test_nothing_is_inline() -> None:
    """What the content security policy forbids: scripts, styles and handlers in the markup."""
    faults: list[str] = []
    addresses: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            given = dict(attributes)
            if tag == "style" or (tag == "script" and "src" not in given):
                faults.append(tag)
            faults.extend(name for name in given if name == "style" or name.startswith("on"))
            addresses.extend(given[name] or "" for name in ("src", "href") if name in given)

    Reader().feed(FILES["index.html"].read_text("utf-8"))
    assert not faults
    parts = {address for address in addresses if address.startswith("/page/")}
    assert parts >= {"/page/app.js", "/page/style.css"}
    assert {address.removeprefix("/page/") for address in parts} <= FILES.keys()


def test_no_file_is_long() -> None:
    assert {name: lines for name in FILES if (lines := len(FILES[name].read_text("utf-8").splitlines())) > 300} == {}


def test_the_page_and_its_parts_are_served(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "unsafe" not in policy
    for name, path in FILES.items():
        part = client.get(f"/page/{name}")
        assert part.status_code == 200
        assert part.content == path.read_bytes()
    script = client.get("/page/app.js")
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"  # else a browser does not run it
    assert script.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("name", ["nothing.js", "..%2fpages.py", "%2e%2e/pages.py", "app.js%00", "<b>"])
def test_nothing_else_is_served(client: TestClient, name: str) -> None:
    answer = client.get(f"/page/{name}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_history_says_what_the_report_says(client: TestClient, taught: Path) -> None:
    learner = Learner.open(taught)
    said = client.get("/v1/history").json()
    report = gather(learner)
    assert said["version"] == report.version == learner.state.version.id
    assert said["measure"] == report.measure == "accuracy"
    assert [round_["name"] for round_ in said["rounds"]] == [task.name for task in report.tasks] == ["insects"]
    assert [round_["classes"] for round_ in said["rounds"]] == [["ant", "bee"]]
    assert said["accuracy"] == [list(row) for row in report.accuracy]
    assert said["after_each"] == list(report.after_each or ())
    assert said["numbers"] == report.numbers
    assert said["costs"].keys() == report.costs.keys()
    assert said["name"] == taught.name


def test_history_says_where_an_undo_leads(serve: Callable[..., TestClient], copied: Path) -> None:
    client = serve(copied)
    first = client.get("/v1/history").json()["undo"]
    assert (first["rounds"], first["goes"], first["returns"]) == (["insects"], ["ant", "bee"], [])

    learner = Learner.open(copied)
    learner.learn([(pixels("ant", 20), "wasp"), (pixels("bee", 21), "ant")], task="more")
    after = serve(copied).get("/v1/history").json()
    assert (after["undo"]["rounds"], after["undo"]["goes"]) == (["more"], ["wasp"])

    learner.undo()
    back = serve(copied).get("/v1/history").json()
    assert [round_["name"] for round_ in back["rounds"]] == ["insects"]
    assert back["undo"]["goes"] == ["ant", "bee"]  # the next step goes further back, not to and fro
    learner.undo()
    assert serve(copied).get("/v1/history").json()["undo"] is None


def test_the_page_is_open_and_the_history_is_not(serve: Callable[..., TestClient], taught: Path) -> None:
    client = serve(taught, ask_token=ASK, teach_token=TEACH)
    assert client.get("/").status_code == 200  # else there would be no field for the token
    assert client.get("/page/app.js").status_code == 200
    assert client.get("/v1/history").status_code == 401
    headers: dict[str, Any] = {"Authorization": f"Bearer {ASK}"}
    assert client.get("/v1/history", headers=headers).status_code == 200
