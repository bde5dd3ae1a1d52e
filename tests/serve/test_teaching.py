"""Teaching over HTTP: what is taken, what is refused with which words, and what becomes of it."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from sapwood.serve import worker
from sapwood.serve.jobs import Job, Jobs, _now
from sapwood.serve.worker import Lines, Order
from sapwood.state import State

from .conftest import TEACH, Serve
from .samples import encoded, pixels, scene


@pytest.fixture(autouse=True)
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where uploads lie; a test that ends leaves none."""
    folder = tmp_path / "uploads"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def lesson(name: str, count: int = 6) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("image", (f"{index}.png", encoded(pixels(name, index)), "image/png")) for index in range(count)]


def archive(*entries: tuple[str, bytes]) -> list[tuple[str, tuple[str, bytes, str]]]:
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in entries:
            packed.writestr(name, content)
    return [("archive", ("given.zip", stored.getvalue(), "application/zip"))]


def events(client: TestClient, path: str) -> list[tuple[str, dict[str, Any]]]:
    """All events of a job, to its end."""
    found, event = [], ""
    with client.stream("GET", path, headers={"Accept": "text/event-stream"}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("event: "):
                event = line.removeprefix("event: ")
            elif line.startswith("data: "):
                found.append((event, json.loads(line.removeprefix("data: "))))
    return found


class Here(Jobs):
    """Learns in a thread once ``go`` is set, and hears its lines through a pipe; processes are for other tests."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.go = threading.Event()

    def _learn(self, job: Job) -> None:
        before = State.open(self._state).version
        reading, writing = os.pipe()

        def work() -> None:
            with open(writing, "wb", buffering=0) as out:
                lines = Lines(out)
                self.go.wait(60)
                lines.tell("done", version=worker.learn(job.order, lines).state.version.id)

        with self._changed:
            self._touch(job, status="running", started=_now())
        threading.Thread(target=work).start()
        with open(reading, "rb") as lines:
            said = self._listen(job, SimpleNamespace(stdout=lines))  # type: ignore[arg-type]
        self._conclude(job, before, said, 0)


def learning_here(client: TestClient) -> Here:
    state: Any = client.app.state  # type: ignore[attr-defined]
    state.jobs = Here(state.settings.state, 1, state.serving.keep_up)
    return state.jobs


def ask(client: TestClient, name: str) -> dict[str, Any]:
    answer = client.post("/v1/predict", files={"image": ("a.png", encoded(pixels(name, 50)), "image/png")}).json()
    return {"version": answer["version"], **answer["predictions"][0]}


def test_a_class_is_taught_answers_and_is_taken_back(serve: Serve, copied: Path, uploads: Path) -> None:
    client = serve(copied)
    jobs = learning_here(client)
    before = ask(client, "cat")
    assert before["class"] in ("ant", "bee")
    sent = client.post("/v1/learn", data={"name": " cat ", "task": "pets"}, files=lesson("cat"))
    assert sent.status_code == 202, sent.text
    assert sent.headers["location"] == f"/v1/jobs/{sent.json()['job']}"
    assert sent.json()["status"] in ("queued", "running")

    meanwhile = ask(client, "ant")
    assert (meanwhile["class"], meanwhile["version"]) == ("ant", before["version"])
    busy = client.post("/v1/undo")
    assert (busy.status_code, busy.headers["retry-after"]) == (409, "10")
    assert "learning" in busy.json()["detail"]

    jobs.go.set()
    heard = events(client, sent.headers["location"])
    assert [event for event, _ in heard[:-1]] == ["progress"] * (len(heard) - 1)
    assert heard[-1][0] == "done"
    job = heard[-1][1]
    assert any("new classes: cat (6 pictures)" in note for note in job["progress"]["notes"])
    assert "features" in [content["progress"]["what"] for _, content in heard]
    assert job["submitted"] <= job["started"] <= job["ended"]
    assert (job["status"], job["error"], job["teaches"]) == ("done", None, "cat")
    assert client.get(sent.headers["location"]).json() == job
    assert events(client, sent.headers["location"]) == [("done", job)], "who comes late hears how it ended"
    assert client.get("/v1/jobs").json() == {"jobs": [job]}

    now = ask(client, "cat")
    assert (now["class"], now["version"]) == ("cat", job["version"]), "at once, not a second later"
    assert State.open(copied).version.record["tasks"][-1]["name"] == "pets"
    assert not [path for path in uploads.rglob("*") if path.suffix == ".png" or path.name.isdecimal()]

    back = client.post("/v1/undo")
    assert back.status_code == 200, back.text
    assert back.json()["version"] == State.open(copied).version.id
    assert "undo of" in back.json()["note"]
    assert ask(client, "cat") == {**before, "version": back.json()["version"]}
    assert client.post("/v1/undo").status_code == 200
    emptied = client.post("/v1/undo")
    assert (emptied.status_code, emptied.json()["title"]) == (409, "Nothing to undo")


@pytest.fixture(scope="module")
def held(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, list[Order]]]:
    """A client of a server whose jobs are accepted, noted and never begun."""
    from sapwood.serve.app import create_app
    from sapwood.serve.settings import ServeSettings

    state = shutil.copytree(taught, tmp_path_factory.mktemp("held") / "state")
    orders: list[Order] = []

    class Held(Jobs):
        def submit(self, order: Order, teaches: str) -> dict[str, Any]:
            orders.append(order)
            return {"job": "0", "status": "queued", "teaches": teaches}

    options: dict[str, Any] = {"teach_bytes": 200_000, "teach_pictures": 8, "upload_bytes": 150_000}
    app = create_app(ServeSettings(state, **options))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        app.state.jobs, shelf = Held(state, 1), app.state.shelf.folder
        yield client, orders
        app.state.shelf.folder = shelf  # tests have put it where they see what lies there


PNG = encoded(pixels("cat", 0))
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


@pytest.mark.parametrize(
    ("fields", "files", "status", "words"),
    [
        ({}, lesson("cat", 1), 400, "which class"),
        ({"name": "  "}, lesson("cat", 1), 400, "which class"),
        ({"name": "cat"}, [], 400, "either pictures"),
        ({"name": "cat"}, [*lesson("cat", 1), *archive(("ant/a.png", PNG))], 400, "either pictures"),
        ({}, [*archive(("ant/a.png", PNG)), *archive(("ant/a.png", PNG))], 400, "one archive"),
        ({"name": "cat", "colour": "red"}, lesson("cat", 1), 400, "known are"),
        ({"name": "../cat"}, lesson("cat", 1), 422, "path separator"),
        ({"name": ".."}, lesson("cat", 1), 422, "means a folder"),
        ({"name": "a\x00b"}, lesson("cat", 1), 422, "control character"),
        ({"name": "x" * 10_000}, lesson("cat", 1), 422, "200 characters, got 10,000"),
        ({"name": "K\xfche".encode("latin-1")}, lesson("cat", 1), 422, "'name' is not UTF-8"),
        ({"name": "cat", "task": "a/b"}, lesson("cat", 1), 422, "path separator"),
        ({"name": "cat", "epochs": "many"}, lesson("cat", 1), 422, "whole number"),
        ({"name": "cat", "epochs": "-1"}, lesson("cat", 1), 422, "whole number"),
        ({"name": "cat", "epochs": "1e9"}, lesson("cat", 1), 422, "whole number"),
        ({"name": "cat"}, lesson("cat", 9), 413, "8 at most"),
        ({"name": "cat"}, [("image", ("a.jpg", SVG, "image/jpeg"))], 415, "not a picture"),
        ({"name": "cat"}, [("image", ("a.jpg", b"", "image/jpeg"))], 422, "empty"),
        ({"name": "cat"}, [("image", ("a.jpg", bytes(300_000), "image/jpeg"))], 413, "MiB at most"),
        ({"name": "cat"}, [("image", ("a.jpg", bytes(160_000), "image/jpeg"))], 413, "a picture may be"),
        ({}, [("archive", ("a.zip", b"no zip", "application/zip"))], 422, "not a zip"),
        ({}, archive(("../ant/a.png", PNG)), 422, "leads out"),
        ({}, archive(("a.png", PNG)), 422, "pack a folder for each class"),
        ({}, archive(("ant/a.png", SVG), ("bee/b.png", PNG)), 415, "ant/a.png"),
        ({}, archive(("ant/a.bmp", bytes(149_000))), 415, "not a picture"),
        ({}, archive(("ant/a.bmp", bytes(151_000))), 422, "unpacks to more"),
        ({}, archive(("ant/a.bmp", bytes(149_000)), ("ant/b.bmp", bytes(149_000))), 422, "unpacks to more"),
        ({}, archive(*((f"ant/{index}.png", PNG) for index in range(9))), 422, "more than 8 files"),
        ({}, archive(("images/a.png", PNG), ("masks/a.png", PNG), ("classes.json", b"{}")), 422, "classification"),
        ({}, archive(("ant/a.png", PNG), ("Ant/b.png", PNG)), 422, "letter case"),
    ],
)
def test_what_is_refused(
    held: tuple[TestClient, list[Order]], uploads: Path, fields: Any, files: Any, status: int, words: str
) -> None:
    client, orders = held
    orders.clear()
    client.app.state.shelf.folder = uploads  # type: ignore[attr-defined]
    form = [(name, (None, value)) for name, value in fields.items()]
    answer = client.post("/v1/learn", files=[*form, *files])
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert words in answer.json()["detail"]
    assert str(uploads) not in answer.text
    assert not orders
    assert not list(uploads.iterdir()), "nothing of it stays"


def test_what_is_taken(held: tuple[TestClient, list[Order]], uploads: Path) -> None:
    client, orders = held
    client.app.state.shelf.folder = uploads  # type: ignore[attr-defined]
    orders.clear()
    name = "<b>Käfer & Co."
    fields = {"name": name, "task": "mine", "epochs": "3", "restart": "true"}
    assert client.post("/v1/learn", data=fields, files=lesson("cat", 2)).status_code == 202
    one = orders.pop()
    assert (one.label, one.task, one.training, one.restart) == (name, "mine", {"epochs": 3}, True)
    assert [called for called, _ in one.pictures] == ["0.png", "1.png"]
    assert [(Path(one.folder) / file).read_bytes() for _, file in one.pictures] == [
        encoded(pixels("cat", index)) for index in range(2)
    ]
    zipped = archive(("all/train/ant/a.png", PNG), ("all/test/ant/b.png", PNG))
    assert client.post("/v1/learn", files=zipped).status_code == 202
    many = orders.pop()
    assert (many.label, many.pictures, many.restart) == (None, [], False)
    found = sorted(str(path.relative_to(many.folder)) for path in Path(many.folder).rglob("*.png"))
    assert found == ["test/ant/b.png", "train/ant/a.png"]


def test_masks_come_in_archives(serve: Serve, drawing: Path, tmp_path: Path, uploads: Path) -> None:
    client = serve(Path(shutil.copytree(drawing, tmp_path / "drawing")), jobs=1)
    jobs = learning_here(client)
    jobs.go.set()
    named = client.post("/v1/learn", data={"name": "cat"}, files=lesson("cat", 1))
    assert (named.status_code, "archive of images/" in named.json()["detail"]) == (422, True)
    classes = client.post("/v1/learn", files=archive(("ant/a.png", PNG)))
    assert (classes.status_code, "segmentation" in classes.json()["detail"]) == (422, True)
    image, mask = scene(0)
    image[:, 14:28], mask[:, 14:28] = pixels("cat", 0, (28, 14)), 3
    files = [
        (f"{part}/{index}.png", encoded(content))
        for part, content in (("images", image), ("masks", mask))
        for index in range(2)
    ]
    good = archive(*files, ("classes.json", b'{"background":0,"ant":1,"bee":2,"cat":3}'))
    before = client.get("/v1/state").json()
    with jobs.quiet():
        sent = client.post("/v1/learn", data={"epochs": "2"}, files=good)
        assert sent.status_code == 202
        full = client.post("/v1/learn", files=good)
        assert (full.status_code, full.headers["retry-after"]) == (429, "10")
        (waiting,) = client.get("/v1/jobs").json()["jobs"]
        assert (waiting["status"], waiting["teaches"]) == ("queued", "ant, bee, cat")
    event, job = events(client, sent.headers["location"])[-1]
    assert (event, job["error"]) == ("done", None)
    after = client.get("/v1/state").json()
    assert (before["classes"], after["classes"]) == (["background", "ant", "bee"], ["background", "ant", "bee", "cat"])
    assert (after["version"], len(after["palette"])) == (job["version"], 4)
    said = client.post("/v1/predict", files={"image": encoded(image)}).json()
    assert said["version"] == job["version"]
    assert said["predictions"][0]["classes"].keys() <= set(after["classes"])
    assert not [path for path in uploads.rglob("*") if path.suffix == ".png" or path.name.isdecimal()]


def test_a_state_that_somebody_else_is_teaching(serve: Serve, copied: Path) -> None:
    client = serve(copied)
    with State.open(copied).writer():
        answer = client.post("/v1/undo")
        assert (answer.status_code, answer.json()["title"]) == (409, "State is busy")
        assert str(copied) not in answer.text
    assert client.post("/v1/undo").status_code == 200


def test_who_may_teach(serve: Serve, taught: Path) -> None:
    guarded = serve(taught, teach_token=TEACH)
    paths = [("POST", "/v1/learn"), ("POST", "/v1/undo"), ("GET", "/v1/jobs"), ("GET", "/v1/jobs/0")]
    for method, path in paths:
        assert guarded.request(method, path).status_code == 401
        wrong = guarded.request(method, path, headers={"Authorization": "Bearer another-token-than-it"})
        assert wrong.status_code == 401
    right = {"Authorization": f"Bearer {TEACH}"}
    assert guarded.get("/v1/jobs/0", headers=right).status_code == 404
    foreign = guarded.post("/v1/undo", headers={**right, "Origin": "http://evil.example"})
    assert foreign.status_code == 403
    closed = serve(taught, read_only=True)
    for method, path in paths:
        answer = closed.request(method, path)
        assert (answer.status_code, answer.json()["title"]) == (403, "Read only")
